// Ask, then continue the conversation by `previous_response_id`.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.ANTIPHON_URL ?? "http://127.0.0.1:8080/v1", apiKey: "anything" });
const model = process.env.MODEL ?? "demo";

const first = await client.responses.create({ model, input: "Name a river." });
console.log("model:", first.output_text);

const second = await client.responses.create({ model, input: "What did I say before?", previous_response_id: first.id });
console.log("model:", second.output_text);
console.log("tokens:", second.usage.total_tokens);
