// Put two documents into a vector store, and let the model search them.
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.env.ANTIPHON_URL ?? "http://127.0.0.1:8080/v1", apiKey: "anything" });
const model = process.env.MODEL ?? "demo";
const documents = {
  "bicycles.md": "A flat tyre: take the wheel off, find the hole under water, glue a patch on it.",
  "bread.md": "Sourdough needs twelve hours in the refrigerator before it is baked.",
};

const store = await client.vectorStores.create({ name: "notes" });
for (const [name, content] of Object.entries(documents)) {
  const file = await client.files.create({ file: await toFile(Buffer.from(content), name), purpose: "assistants" });
  await client.vectorStores.files.createAndPoll(store.id, { file_id: file.id }, { pollIntervalMs: 200 });
}

const response = await client.responses.create({
  model,
  input: "Search my files: how do I mend a flat tyre?",
  tools: [{ type: "file_search", vector_store_ids: [store.id] }],
  include: ["file_search_call.results"],
});
for (const item of response.output) {
  if (item.type === "file_search_call") {
    console.log("found:", item.results.map((one) => `${one.filename} (${one.score.toFixed(2)})`).join(", "));
  }
}
console.log("model:", response.output_text);

await client.vectorStores.delete(store.id);
