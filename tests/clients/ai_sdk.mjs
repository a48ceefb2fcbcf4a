// The Vercel AI SDK with @ai-sdk/openai, which refers to what the server keeps.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText } from "ai";
import { common } from "./ai_sdk_common.mjs";
import { baseURL, received, roles, same, script } from "./strict.mjs";

const model = createOpenAI({ baseURL, apiKey: "k" }).responses("strict");
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
  async by_id() {
    await script({ content: "One." }, { content: "Two." });
    const first = await generateText({ model, prompt: "count" });
    const previousResponseId = first.finalStep.providerMetadata.openai.responseId;
    same((await generateText({ model, prompt: "on", providerOptions: { openai: { previousResponseId } } })).text, "Two.");
    same((await received())[1].messages.map((one) => one.content), ["count", "One.", "on"]);
  },
};
