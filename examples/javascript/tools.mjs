// Let the model call a function of this program until it answers.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.ANTIPHON_URL ?? "http://127.0.0.1:8080/v1", apiKey: "anything" });
const model = process.env.MODEL ?? "demo";

// Stands for a call of a weather service.
const getWeather = ({ city }) => `sunny in ${city}`;

const tools = [
  {
    type: "function",
    name: "get_weather",
    description: "The weather in a city.",
    parameters: {
      type: "object",
      properties: { city: { type: "string" } },
      required: ["city"],
      additionalProperties: false,
    },
    strict: true,
  },
];
let response = await client.responses.create({ model, input: "What is the weather in Paris and Oslo?", tools });
for (;;) {
  const calls = response.output.filter((item) => item.type === "function_call");
  if (calls.length === 0) break;
  const outputs = calls.map((call) => {
    const output = getWeather(JSON.parse(call.arguments));
    console.log("called:", call.name, call.arguments, "->", output);
    return { type: "function_call_output", call_id: call.call_id, output };
  });
  // Antiphon has stored the calls: the next request sends only their results.
  response = await client.responses.create({ model, input: outputs, tools, previous_response_id: response.id });
}
console.log("model:", response.output_text);
