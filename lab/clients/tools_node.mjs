// Tools that run in the gateway, as Node's libraries declare them and read their items: web search and MCP.
import OpenAI from "openai";
import { Agent, OpenAIResponsesModel, hostedMcpTool, run, setTracingDisabled, webSearchTool } from "@openai/agents";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, stepCountIs, streamText } from "ai";
import { baseURL, received, same, script } from "./strict.mjs";

setTracingDisabled(true);
const serverUrl = process.env.MCP_URL;
const model = new OpenAIResponsesModel(new OpenAI({ baseURL, apiKey: "k", maxRetries: 0 }), "strict");
const agent = (...tools) => new Agent({ name: "a", instructions: "Be brief.", model, tools });
const provider = createOpenAI({ baseURL, apiKey: "k" });
const SEARCH = { calls: [{ name: "web_search", arguments: { query: "swifts" } }] };
const CITED = { content: "They sleep in the air\u30101\u3011." };
const echo = (message) => ({ calls: [{ name: "all__echo", arguments: { message } }] });

export const scenarios = {
  async agents_web_search() {
    await script(SEARCH, CITED);
    const made = await run(agent(webSearchTool({ searchContextSize: "low" })), "Where do swifts sleep?");
    same(made.finalOutput, "They sleep in the air.");
    same(made.newItems.map((item) => item.rawItem.name).filter(Boolean), ["web_search_call"]);
    // The agent comes back with its items.
    await script({ content: "Yes." });
    same((await run(agent(webSearchTool()), [...made.history, { role: "user", content: "Sure?" }])).finalOutput, "Yes.");
  },
  async agents_mcp() {
    await script(echo("hello"), { content: "Done." });
    const tool = hostedMcpTool({ serverLabel: "all", serverUrl, allowedTools: ["echo"] });
    const made = await run(agent(tool), "Say hello.", { stream: true });
    await made.completed;
    same(made.finalOutput, "Done.");
    const call = made.newItems.map((item) => item.rawItem).find((item) => item.name === "mcp_call");
    same([call.output, call.status], ["Echo: hello", "completed"]);
  },
  async agents_mcp_approval() {
    const asked = [];
    const onApproval = async (_, request) => {
      asked.push(request.rawItem.name);
      return { approve: true };
    };
    const tool = hostedMcpTool({ serverLabel: "all", serverUrl, allowedTools: ["echo"], requireApproval: "always", onApproval });
    await script(echo("yes"), { content: "Done." });
    same((await run(agent(tool), "Say yes.")).finalOutput, "Done.");
    same(asked, ["echo"]);
    same((await received()).at(-1).messages.at(-1).content, "Echo: yes");
  },
  async ai_sdk_web_search() {
    await script(SEARCH, CITED);
    const stream = streamText({ model: provider.responses("strict"), prompt: "go", tools: { web_search: provider.tools.webSearch({ searchContextSize: "low" }) } });
    const found = [];
    for await (const part of stream.fullStream) found.push(part);
    same(found.filter((part) => part.type === "error"), []);
    same(await stream.text, "They sleep in the air.");
    // The SDK asks for the sources of the search itself, and shows those.
    same(found.filter((part) => part.type === "source").map((part) => new URL(part.url).pathname), ["/swifts"]);
    same(found.filter((part) => part.type === "tool-result").map((part) => part.toolName), ["web_search"]);
  },
  async ai_sdk_mcp() {
    await script(echo("hello"), { content: "Done." });
    const mcp = provider.tools.mcp({ serverLabel: "all", serverUrl, allowedTools: ["echo"], requireApproval: "never" });
    const made = await generateText({ model: provider.responses("strict"), prompt: "go", tools: { mcp }, stopWhen: stepCountIs(3) });
    same(made.text, "Done.");
    const results = made.content.filter((part) => part.type === "tool-result");
    same(JSON.stringify(results).includes("Echo: hello"), true);
  },
};
