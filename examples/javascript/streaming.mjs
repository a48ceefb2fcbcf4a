// Print an answer while the model writes it.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.ANTIPHON_URL ?? "http://127.0.0.1:8080/v1", apiKey: "anything" });
const model = process.env.MODEL ?? "demo";

const stream = client.responses.stream({ model, input: "Please think, then tell me about rivers." });
for await (const event of stream) {
  if (event.type === "response.output_text.delta") process.stdout.write(event.delta);
}
console.log();
console.log("status:", (await stream.finalResponse()).status);
