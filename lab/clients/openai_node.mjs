// What OpenAI's SDK for Node must be able to do, and what the chat server sees of it.
import OpenAI, { toFile } from "openai";
import { zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { HELLO, PNG, baseURL, cut, left, received, roles, same, script } from "./strict.mjs";

const client = new OpenAI({ baseURL, apiKey: "k", maxRetries: 0 });
const Answer = z.object({ answer: z.string(), sure: z.boolean() });
const weather = {
  type: "function", name: "weather", strict: true,
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false },
};
const create = (input, more = {}) => client.responses.create({ model: "strict", input, ...more });
const calls = (made) => made.output.filter((item) => item.type === "function_call");
const outputFor = (call, output) => ({ type: "function_call_output", call_id: call.call_id, output });

async function thrown(kind, promise) {
  try {
    await promise();
  } catch (error) {
    same(error instanceof kind, true, `${error?.constructor?.name}: ${error}`);
    return error;
  }
  throw new Error(`no ${kind.name}`);
}

async function loop(ask) {
  const cities = ["Oslo", "Rome"];
  await script({ calls: cities.map((city) => ({ name: "weather", arguments: { city } })), reasoning: "Both." }, { content: "Done." });
  const first = await ask({ input: "Compare.", tools: [weather] });
  same(calls(first).map((call) => JSON.parse(call.arguments).city), cities);
  const input = calls(first).map((call) => outputFor(call, "rain"));
  const second = await ask({ input, tools: [weather], previous_response_id: first.id });
  same([second.output_text, second.previous_response_id], ["Done.", first.id]);
  const last = (await received())[1];
  same(roles(last), ["user", "assistant", "tool", "tool"]);
  same(last.messages[1].reasoning_content, "Both.");
  same(last.messages[1].tool_calls.map((call) => call.id), calls(first).map((call) => call.call_id));
}

export const scenarios = {
  async text() {
    await script();
    const made = await create("hi", { instructions: "Be brief." });
    same([made.output_text, made.usage.total_tokens], [HELLO, 12]);
    same((await received())[0].messages, [{ role: "system", content: "Be brief." }, { role: "user", content: "hi" }]);
  },
  async streamed() {
    await script();
    const stream = client.responses.stream({ model: "strict", input: "hi" });
    const events = [];
    for await (const event of stream) events.push(event);
    same(events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta).join(""), HELLO);
    same(events.map((event) => event.sequence_number), events.map((_, at) => at));
    const final = await stream.finalResponse();
    same([final.status, final.output_text], ["completed", HELLO]);
    // What the SDK folded from the events is what can be read afterwards.
    const kept = await client.responses.retrieve(final.id);
    const plain = final.output.map((item) => ({ ...item, ...(item.content && { content: item.content.map(({ parsed, ...part }) => part) }) }));
    same(plain, kept.output);
  },
  async parsed() {
    await script({ content: '{"answer":"yes","sure":true}' });
    const made = await client.responses.parse({ model: "strict", input: "Is it?", text: { format: zodTextFormat(Answer, "answer") } });
    same(made.output_parsed, { answer: "yes", sure: true });
    const format = (await received())[0].response_format;
    same([format.type, format.json_schema.name, format.json_schema.strict], ["json_schema", "answer", true]);
    same(format.json_schema.schema.required, ["answer", "sure"]);
  },
  async parsed_stream() {
    await script({ content: '{"answer":"no","sure":false}' });
    const stream = client.responses.stream({ model: "strict", input: "Is it?", text: { format: zodTextFormat(Answer, "answer") } });
    same((await stream.finalResponse()).output_parsed, { answer: "no", sure: false });
  },
  async parsed_tool() {
    await script({ calls: [{ name: "Answer", arguments: { answer: "so", sure: true } }] });
    const tools = [zodResponsesFunction({ name: "Answer", parameters: Answer })];
    const made = await client.responses.parse({ model: "strict", input: "Answer.", tools });
    same(calls(made)[0].parsed_arguments, { answer: "so", sure: true });
    same((await received())[0].tools[0].function.strict, true);
  },
  async image() {
    await script({ content: "Red." });
    const url = `data:image/png;base64,${PNG}`;
    const content = [{ type: "input_text", text: "What?" }, { type: "input_image", image_url: url, detail: "high" }];
    same((await create([{ role: "user", content }])).output_text, "Red.");
    same((await received())[0].messages[0].content[1], { type: "image_url", image_url: { url, detail: "high" } });
  },
  async parallel_calls() { await loop((body) => create(body.input, body)); },
  async parallel_calls_streamed() {
    await loop((body) => client.responses.stream({ model: "strict", ...body }).finalResponse());
  },
  async stateless_reasoning() {
    await script({ calls: [{ name: "weather", arguments: { city: "Oslo" } }], reasoning: "Ask the tool." });
    const options = { tools: [weather], store: false, include: ["reasoning.encrypted_content"], reasoning: { summary: "auto" } };
    const history = [{ role: "user", content: "Oslo?" }];
    const first = await create(history, options);
    same(first.output[0].summary.map((part) => part.text), ["Ask the tool."]);
    same(first.output[0].encrypted_content.length > 20, true);
    history.push(...first.output, outputFor(calls(first)[0], "rain"));
    const second = await create(history, options);
    same(second.output_text, "The tool said: rain");
    history.push(...second.output, { role: "user", content: "And tomorrow?" });
    same((await create(history, options)).output_text, HELLO);
    const chats = await received();
    same(chats[1].messages[1].reasoning_content, "Ask the tool.");
    same(roles(chats[2]), ["user", "assistant", "tool", "assistant", "user"]);
    same((await thrown(OpenAI.NotFoundError, () => client.responses.retrieve(first.id))).status, 404);
  },
  async leaving() {
    await script({ content: "Never finished.", hold: true });
    const stream = await create("hi", { stream: true });
    for await (const event of stream) if (event.type === "response.output_text.delta") break;
    same(await left(), true);
  },
  async rate_limit() {
    await script({ status: 429, headers: { "retry-after": "7" } });
    const error = await thrown(OpenAI.RateLimitError, () => create("hi"));
    same([error.status, error.code, error.headers.get("retry-after")], [429, "rate_limit_exceeded", "7"]);
  },
  async rate_limit_before_a_stream() {
    await script({ status: 429, headers: { "retry-after": "7" } });
    const error = await thrown(OpenAI.RateLimitError, () => create("hi", { stream: true }));
    same(error.headers.get("retry-after"), "7");
  },
  async retried() {
    await script({ status: 429, headers: { "retry-after-ms": "120" } });
    const made = await client.responses.create({ model: "strict", input: "hi" }, { maxRetries: 1 });
    same([made.output_text, (await received()).length], [HELLO, 2]);
  },
  async bad_request() {
    await script();
    const error = await thrown(OpenAI.BadRequestError, () => create("hi", { temperature: "hot" }));
    same([error.param, error.type], ["temperature", "invalid_request_error"]);
    same(await received(), []);
  },
  async bad_request_upstream() {
    await script({ status: 400, error: { message: "Too long.", type: "invalid_request_error", code: "context_length_exceeded" } });
    same((await thrown(OpenAI.BadRequestError, () => create("hi"))).code, "context_length_exceeded");
  },
  async unknown_previous() {
    await script();
    const error = await thrown(OpenAI.BadRequestError, () => create("hi", { previous_response_id: `resp_${"0".repeat(48)}` }));
    same([error.code, error.param], ["previous_response_not_found", "previous_response_id"]);
    same(await received(), []);
  },
  async failed_in_the_stream() {
    await script({ content: "Half.", error_chunk: { message: "It broke.", type: "server_error" } });
    const error = await thrown(OpenAI.APIError, async () => { for await (const _ of await create("hi", { stream: true })); });
    same(error.message.includes("It broke."), true, error.message);
  },
  async cut_off() {
    await script({ content: "Half an answer.", hold: true });
    const kinds = [];
    await thrown(Error, async () => {
      for await (const event of await create("hi", { stream: true })) {
        kinds.push(event.type);
        if (kinds.filter((kind) => kind === "response.output_text.delta").length === 1) await cut();
      }
    });
    same(kinds.includes("response.completed") || kinds.includes("response.incomplete"), false);
  },
  async logprobs() {
    await script({ content: "Sure.", logprobs: true });
    const made = await create("hi", { include: ["message.output_text.logprobs"], top_logprobs: 1 });
    const [one] = made.output.at(-1).content[0].logprobs;
    same([one.token, one.logprob, one.top_logprobs[0].token], ["Sure.", -0.5, "Sure."]);
  },
  async uploaded() {
    await script();
    const file = await toFile(Buffer.from("# Moon"), "naïve.md");
    const made = await client.files.create({
      file, purpose: "user_data", expires_after: { anchor: "created_at", seconds: 3600 },
    });
    same([made.filename, made.bytes, made.expires_at - made.created_at], ["naïve.md", 6, 3600]);
    const ids = [];
    for await (const each of client.files.list({ limit: 1 })) ids.push(each.id);
    same(ids.includes(made.id), true);
    same(await (await client.files.content(made.id)).text(), "# Moon");
    await create([{ role: "user", content: [{ type: "input_file", file_id: made.id }] }]);
    same(JSON.stringify((await received())[0].messages[0].content).includes("# Moon"), true);
    same((await client.files.delete(made.id)).deleted, true);
    await thrown(OpenAI.NotFoundError, () => client.files.retrieve(made.id));
  },
  async kept() {
    await script();
    const made = await create([{ role: "developer", content: "Be brief." }, { role: "user", content: "hi" }]);
    same((await client.responses.retrieve(made.id)).output_text, HELLO);
    const items = [];
    for await (const item of client.responses.inputItems.list(made.id, { order: "asc", limit: 1 })) items.push(item.role);
    same(items, ["developer", "user"]);
    await client.responses.delete(made.id);
    await thrown(OpenAI.NotFoundError, () => client.responses.retrieve(made.id));
  },
};
