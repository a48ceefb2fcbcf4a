// Start a response in the background, read its stream from the middle, and get the result.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.ANTIPHON_URL ?? "http://127.0.0.1:8080/v1", apiKey: "anything" });
const model = process.env.MODEL ?? "demo";

const started = await client.responses.create({ model, input: "Tell me about rivers.", background: true, stream: true });
let id = "";
let last = 0;
for await (const event of started) {
  if (event.type === "response.created") id = event.response.id;
  last = event.sequence_number;
  if (last >= 3) break; // as if the connection were lost; the response goes on
}
console.log("left after event", last);

// Any process of the gateway continues the stream after the last event that arrived.
for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: last })) {
  if (event.type === "response.completed") console.log("status:", event.response.status);
}
console.log("model:", (await client.responses.retrieve(id)).output_text);
