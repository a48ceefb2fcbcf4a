// What @openai/agents must be able to do, and what the chat server sees of it.
import OpenAI from "openai";
import { Agent, OpenAIResponsesModel, run, setTracingDisabled, tool } from "@openai/agents";
import { z } from "zod";
import { HELLO, baseURL, received, roles, same, script } from "./strict.mjs";

setTracingDisabled(true);
const model = new OpenAIResponsesModel(new OpenAI({ baseURL, apiKey: "k", maxRetries: 0 }), "strict");
const add = tool({ name: "add", description: "Adds one.", parameters: z.object({ a: z.number() }), execute: async ({ a }) => `sum ${a + 1}` });
const agent = (more = {}) => new Agent({ name: "a", instructions: "Be brief.", model, tools: [add], ...more });
const adding = (...numbers) => ({ calls: numbers.map((a) => ({ name: "add", arguments: { a } })) });

export const scenarios = {
  async text() {
    await script();
    same((await run(agent({ tools: [] }), "hi")).finalOutput, HELLO);
    const [chat] = await received();
    same(roles(chat), ["system", "user"]);
    same("tools" in chat, false);
  },
  async tools() {
    await script({ ...adding(1), reasoning: "First." }, { ...adding(2, 3), reasoning: "Then." }, { content: "Done." });
    same((await run(agent(), "add them")).finalOutput, "Done.");
    const last = (await received()).at(-1);
    same(roles(last), ["system", "user", "assistant", "tool", "assistant", "tool", "tool"]);
    same(last.messages.filter((one) => one.role === "assistant").map((one) => one.reasoning_content), ["First.", "Then."]);
    same(last.messages.filter((one) => one.role === "tool").map((one) => one.content), ["sum 2", "sum 3", "sum 4"]);
  },
  async streamed() {
    await script({ ...adding(1), content: "Let me add." }, { content: "It is two." });
    const result = await run(agent(), "add", { stream: true });
    let words = "";
    for await (const event of result) {
      if (event.type === "raw_model_stream_event" && event.data.type === "output_text_delta") words += event.data.delta;
    }
    await result.completed;
    same([result.finalOutput, words], ["It is two.", "Let me add.It is two."]);
    same((await received())[1].messages[2].content, "Let me add.");
  },
  async structured() {
    await script({ content: '{"answer":"yes"}' });
    const asked = agent({ tools: [], outputType: z.object({ answer: z.string() }) });
    same((await run(asked, "sure?")).finalOutput, { answer: "yes" });
    same((await received())[0].response_format.json_schema.strict, true);
  },
  async handoff() {
    const spanish = agent({ name: "spanish", instructions: "Speak Spanish.", tools: [] });
    await script({ calls: [{ name: "transfer_to_spanish", arguments: {} }] }, { content: "Hola." });
    const made = await run(agent({ handoffs: [spanish] }), "in Spanish, please");
    same([made.finalOutput, made.lastAgent.name], ["Hola.", "spanish"]);
    const [first, second] = await received();
    same(first.tools.map((one) => one.function.name), ["add", "transfer_to_spanish"]);
    same([second.messages[0].content, roles(second)], ["Speak Spanish.", ["system", "user", "assistant", "tool"]]);
  },
  async by_id() {
    await script({ content: "One." }, { content: "Two." });
    const first = await run(agent(), "count");
    const second = await run(agent(), "on", { previousResponseId: first.lastResponseId });
    same(second.finalOutput, "Two.");
    same((await received())[1].messages.map((one) => one.content), ["Be brief.", "count", "One.", "on"]);
  },
  async history() {
    await script({ ...adding(1), reasoning: "I add." }, { content: "Two." }, { content: "Still two." });
    const first = await run(agent(), "add");
    const second = await run(agent(), [...first.history, { role: "user", content: "and now?" }]);
    same(second.finalOutput, "Still two.");
    same(roles((await received()).at(-1)), ["system", "user", "assistant", "tool", "assistant", "user"]);
  },
  async errors() {
    await script({ status: 429, headers: { "retry-after": "3" } });
    try {
      await run(agent(), "hi");
    } catch (error) {
      same([error instanceof OpenAI.RateLimitError, error.headers.get("retry-after")], [true, "3"]);
      return;
    }
    throw new Error("no error");
  },
};
