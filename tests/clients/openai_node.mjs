// The OpenAI SDK for Node. Prints one line of JSON per scenario.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "k", maxRetries: 0 });
const tools = [{ type: "function", name: "add", parameters: { type: "object", properties: { a: { type: "number" } } }, strict: false }];

export const scenarios = {
  async text() {
    const made = await client.responses.create({ model: "strict", input: "hi" });
    return made.output_text === "Hello from the model." && made.usage.total_tokens === 12;
  },
  async streamed() {
    let text = "";
    const stream = client.responses.stream({ model: "strict", input: "hi" });
    for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
    return text === "Hello from the model." && (await stream.finalResponse()).status === "completed";
  },
  async tool() {
    const first = await client.responses.create({ model: "strict", input: 'use the tool add {"a": 1}', tools });
    const call = first.output.find((item) => item.type === "function_call");
    const second = await client.responses.create({
      model: "strict", tools, previous_response_id: first.id,
      input: [{ type: "function_call_output", call_id: call.call_id, output: "2" }],
    });
    return call.arguments === '{"a": 1}' && second.output_text === "The tool said: 2";
  },
  async structured() {
    const format = { type: "json_schema", name: "a", strict: true, schema: { type: "object", properties: { answer: { type: "string" } }, required: ["answer"], additionalProperties: false } };
    const made = await client.responses.parse({ model: "strict", input: "json", text: { format } });
    return JSON.parse(made.output_text).answer === "yes";
  },
  async error() {
    try {
      await client.responses.create({ model: "strict", input: "fail with 429" });
    } catch (error) {
      return error instanceof OpenAI.RateLimitError && error.status === 429;
    }
    return false;
  },
};
