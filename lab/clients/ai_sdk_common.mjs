// What the Vercel AI SDK must be able to do with either of its providers, and what the chat server sees of it.
import { APICallError, Output, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { HELLO, PNG, cut, left, received, roles, same, script } from "./strict.mjs";

const add = tool({ description: "Adds one.", inputSchema: z.object({ a: z.number() }), execute: async ({ a }) => `sum ${a + 1}` });
const adding = (...numbers) => ({ calls: numbers.map((a) => ({ name: "add", arguments: { a } })) });
const stopWhen = stepCountIs(5);

async function parts(stream) {
  const found = [];
  for await (const part of stream.fullStream) found.push(part);
  return found;
}
const joined = (found, kind) => found.filter((part) => part.type === kind).map((part) => part.text ?? part.delta).join("");

// `options`: what makes the provider ask for reasoning it can show.
export function common(model, options = {}) {
  async function steps(found) {
    const last = (await received()).at(-1);
    same(roles(last), ["user", "assistant", "tool", "tool", "assistant", "tool"]);
    same(last.messages.filter((one) => one.role === "tool").map((one) => one.content), ["sum 2", "sum 3", "sum 4"]);
    same(last.messages.filter((one) => one.role === "assistant").map((one) => one.reasoning_content), ["First.", "Then."]);
    same(found, "Done.");
  }
  const answers = [{ ...adding(1, 2), reasoning: "First." }, { ...adding(3), reasoning: "Then." }, { content: "Done." }];
  return {
    async text() {
      await script();
      const made = await generateText({ model, instructions: "Be brief.", prompt: "hi", temperature: 0.5 });
      same([made.text, made.usage.totalTokens, made.finishReason], [HELLO, 12, "stop"]);
      const [chat] = await received();
      same([roles(chat), chat.temperature], [["system", "user"], 0.5]);
    },
    async streamed() {
      await script();
      const stream = streamText({ model, prompt: "hi" });
      const found = await parts(stream);
      same([joined(found, "text-delta"), found.filter((part) => part.type === "error")], [HELLO, []]);
      same([(await stream.usage).totalTokens, await stream.finishReason], [12, "stop"]);
      same((await received())[0].stream, true);
    },
    async tools() {
      await script(...answers);
      await steps((await generateText({ model, prompt: "add them", tools: { add }, stopWhen, ...options })).text);
    },
    async tools_streamed() {
      await script(...answers);
      const stream = streamText({ model, prompt: "add them", tools: { add }, stopWhen, ...options });
      const found = await parts(stream);
      same(found.filter((part) => part.type === "tool-call").map((part) => part.input.a), [1, 2, 3]);
      same(found.filter((part) => part.type === "error"), []);
      await steps(await stream.text);
    },
    async forced_tool() {
      await script(adding(1));
      const made = await generateText({ model, prompt: "hi", tools: { add }, toolChoice: { type: "tool", toolName: "add" } });
      same(made.toolResults.map((one) => one.output), ["sum 2"]);
      same((await received())[0].tool_choice, { type: "function", function: { name: "add" } });
    },
    async object() {
      await script({ content: '{"answer":"yes","sure":true}' });
      const schema = z.object({ answer: z.string(), sure: z.boolean() });
      same((await generateObject({ model, prompt: "sure?", schema })).object, { answer: "yes", sure: true });
      const format = (await received())[0].response_format;
      same([format.type, format.json_schema.schema.required], ["json_schema", ["answer", "sure"]]);
    },
    async object_streamed() {
      await script({ content: '{"answer":"yes"}' });
      const stream = streamText({ model, prompt: "sure?", output: Output.object({ schema: z.object({ answer: z.string() }) }) });
      await parts(stream);
      same(await stream.output, { answer: "yes" });
    },
    async reasoning() {
      await script({ content: "Two.", reasoning: "I count." });
      const made = await generateText({ model, prompt: "count", ...options });
      same([made.reasoningText, made.text], ["I count.", "Two."]);
    },
    async reasoning_streamed() {
      await script({ content: "Two.", reasoning: "I count." });
      const found = await parts(streamText({ model, prompt: "count", ...options }));
      same([joined(found, "reasoning-delta"), joined(found, "text-delta")], ["I count.", "Two."]);
    },
    async conversation() {
      await script({ ...adding(1), reasoning: "I add." }, { content: "Two." }, { content: "Still two." });
      const messages = [{ role: "user", content: "add" }];
      const first = await generateText({ model, messages, tools: { add }, stopWhen, ...options });
      messages.push(...first.responseMessages, { role: "user", content: "and now?" });
      same((await generateText({ model, messages, tools: { add }, ...options })).text, "Still two.");
      same(roles((await received()).at(-1)), ["user", "assistant", "tool", "assistant", "user"]);
    },
    async image() {
      await script({ content: "Red." });
      const content = [{ type: "text", text: "What?" }, { type: "image", image: PNG, mediaType: "image/png" }];
      same((await generateText({ model, messages: [{ role: "user", content }] })).text, "Red.");
      same((await received())[0].messages[0].content[1].image_url.url, `data:image/png;base64,${PNG}`);
    },
    async cut_short() {
      await script({ content: "Once upon", finish: "length" });
      const made = await generateText({ model, prompt: "A story.", maxOutputTokens: 16 });
      same([made.text, made.finishReason], ["Once upon", "length"]);
    },
    async rate_limit() {
      await script({ status: 429, headers: { "retry-after": "7" } });
      try {
        await generateText({ model, prompt: "hi", maxRetries: 0 });
      } catch (error) {
        same([APICallError.isInstance(error), error.statusCode, error.isRetryable], [true, 429, true]);
        same(error.responseHeaders["retry-after"], "7");
        return;
      }
      throw new Error("no error");
    },
    async retried() {
      await script({ status: 429, headers: { "retry-after-ms": "50" } });
      same((await generateText({ model, prompt: "hi" })).text, HELLO);
      same((await received()).length, 2);
    },
    async failed_in_the_stream() {
      await script({ content: "Half.", error_chunk: { message: "It broke.", type: "server_error" } });
      const found = await parts(streamText({ model, prompt: "hi", onError() {}, maxRetries: 0 }));
      const errors = found.filter((part) => part.type === "error").map((part) => JSON.stringify(part.error) + String(part.error));
      same([errors.length > 0, errors.join().includes("It broke.")], [true, true], errors.join());
    },
    async cut_off() {
      await script({ content: "Half an answer.", hold: true });
      const kinds = [];
      try {
        for await (const part of streamText({ model, prompt: "hi", onError() {}, maxRetries: 0 }).fullStream) {
          kinds.push(part.type === "finish" ? part.finishReason : part.type);
          if (kinds.filter((kind) => kind === "text-delta").length === 1) await cut();
        }
      } catch (error) {
        kinds.push(String(error));
      }
      same(kinds.includes("stop"), false, kinds.join());
    },
    async leaving() {
      await script({ content: "Never finished.", hold: true });
      const abort = new AbortController();
      const stream = streamText({ model, prompt: "hi", abortSignal: abort.signal, onError() {} });
      try {
        for await (const part of stream.fullStream) if (part.type === "text-delta") abort.abort();
      } catch (error) {
        same(error.name, "AbortError");
      }
      same(await left(), true);
    },
  };
}
