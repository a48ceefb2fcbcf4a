// Let Antiphon call the tools of an MCP server, which the operator has registered as the connector `trains`.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.ANTIPHON_URL ?? "http://127.0.0.1:8080/v1", apiKey: "anything" });
const model = process.env.MODEL ?? "demo";

const trains = { type: "mcp", server_label: "trains", connector_id: "trains", require_approval: "never" };
const response = await client.responses.create({ model, input: "When are the departures in Oslo?", tools: [trains] });
for (const item of response.output) {
  if (item.type === "mcp_list_tools") console.log("tools:", item.tools.map((tool) => tool.name).join(", "));
  if (item.type === "mcp_call") console.log("called:", item.name, item.arguments, "->", item.output);
}
console.log("model:", response.output_text);
