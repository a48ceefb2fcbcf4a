// The Vercel AI SDK with @ai-sdk/openai, which refers to what the server keeps.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, stepCountIs, streamText } from "ai";
import { common } from "./ai_sdk_common.mjs";
import { baseURL, received, roles, same, script } from "./strict.mjs";

const provider = createOpenAI({ baseURL, apiKey: "k" });
const model = provider.responses("strict");
const openai = { reasoningSummary: "auto", forceReasoning: true };

export const scenarios = {
  ...common(model, { providerOptions: { openai } }),
  async stateless() {
    await script({ content: "One.", reasoning: "I count." }, { content: "Two." });
    const providerOptions = { openai: { ...openai, store: false, include: ["reasoning.encrypted_content"] } };
    const messages = [{ role: "user", content: "count" }];
    const first = await generateText({ model, messages, providerOptions });
    messages.push(...first.responseMessages, { role: "user", content: "on" });
    same((await generateText({ model, messages, providerOptions })).text, "Two.");
    same(roles((await received())[1]), ["user", "assistant", "user"]);
  },
  async custom_tool() {
    // A tool whose input is plain text; its calls are referred to by their ids afterwards.
    await script({ calls: [{ name: "run", arguments: { input: "print(1)" } }], reasoning: "I run it." }, { content: "It printed 1." });
    const run = provider.tools.customTool({ name: "run", description: "Runs Python.", format: { type: "text" } });
    const tools = { run: { ...run, execute: async (input) => `ran ${input}` } };
    const made = await generateText({ model, prompt: "run it", tools, stopWhen: stepCountIs(3), providerOptions: { openai } });
    same(made.text, "It printed 1.");
    const last = (await received())[1].messages;
    same([last.at(-1).role, last.at(-1).content], ["tool", "ran print(1)"]);
    same(last.at(-2).reasoning_content, "I run it.");
  },
  async refused() {
    await script({ refusal: "I can not.", reasoning: null });
    const stream = streamText({ model, prompt: "Bad things.", providerOptions: { openai } });
    const found = [];
    for await (const part of stream.fullStream) found.push(part);
    same(found.filter((part) => part.type === "error"), []);
    same(found.filter((part) => part.type === "text-delta").map((part) => part.text).join(""), "I can not.");
    // What the SDK makes of a refusal in a response that is completed.
    same(await stream.finishReason, "content-filter");
  },
  async by_id() {
    await script({ content: "One." }, { content: "Two." });
    const first = await generateText({ model, prompt: "count" });
    const previousResponseId = first.finalStep.providerMetadata.openai.responseId;
    same((await generateText({ model, prompt: "on", providerOptions: { openai: { previousResponseId } } })).text, "Two.");
    same((await received())[1].messages.map((one) => one.content), ["count", "One.", "on"]);
  },
};
