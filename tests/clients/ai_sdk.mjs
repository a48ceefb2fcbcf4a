// The Vercel AI SDK with its OpenAI and Open Responses providers.
import { generateText, streamText, generateObject, tool, stepCountIs } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenResponses } from "@ai-sdk/open-responses";
import { z } from "zod";

const openai = createOpenAI({ baseURL: process.env.BASE_URL, apiKey: "k" }).responses("strict");
const open = createOpenResponses({ name: "open", url: `${process.env.BASE_URL}/responses`, apiKey: "k" })("strict");
const add = tool({ description: "adds", inputSchema: z.object({ a: z.number() }), execute: async ({ a }) => `sum ${a + 1}` });

async function all(stream) {
  let text = "";
  for await (const part of stream.textStream) text += part;
  return text;
}

export const scenarios = {
  async text() { return (await generateText({ model: openai, prompt: "hi" })).text === "Hello from the model."; },
  async streamed() { return (await all(streamText({ model: openai, prompt: "hi" }))) === "Hello from the model."; },
  async reasoning() {
    const made = await generateText({ model: openai, prompt: "hi", providerOptions: { openai: { reasoningSummary: "auto", forceReasoning: true } } });
    return made.reasoningText.trim() === "Let me think.";
  },
  async tool() {
    const made = await generateText({ model: openai, prompt: 'use the tool add {"a": 1}', tools: { add }, stopWhen: stepCountIs(3) });
    return made.text === "The tool said: sum 2";
  },
  async streamed_tool() {
    return (await all(streamText({ model: openai, prompt: 'use the tool add {"a": 1}', tools: { add }, stopWhen: stepCountIs(3) }))) === "The tool said: sum 2";
  },
  async structured() {
    const made = await generateObject({ model: openai, prompt: "json", schema: z.object({ answer: z.string() }) });
    return made.object.answer === "yes";
  },
  async open_text() { return (await generateText({ model: open, prompt: "hi" })).text === "Hello from the model."; },
  async open_streamed() { return (await all(streamText({ model: open, prompt: "hi" }))) === "Hello from the model."; },
  async open_tool() {
    const made = await generateText({ model: open, prompt: 'use the tool add {"a": 1}', tools: { add }, stopWhen: stepCountIs(3) });
    return made.text === "The tool said: sum 2";
  },
};
