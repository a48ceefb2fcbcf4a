// The playground: sends one request, reads its event stream, and shows the answer next to the events.
const MOST_EVENTS = 1000;
const csrf = document.querySelector("meta[name=csrf]").content;

function line(text, kind = "div", name = "") {
  const made = document.createElement(kind);
  if (name) made.className = name;
  made.textContent = text;
  return made;
}

function gist(event) {
  if (typeof event.delta === "string" && event.delta) return event.delta.slice(0, 300);
  const { type, sequence_number, ...rest } = event;
  return JSON.stringify(rest).slice(0, 300);
}

function indented(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

function shown(value) { return value === undefined || value === null ? "" : typeof value === "string" ? value : JSON.stringify(value); }

// The thread that a request continues.
function thread(body) { return body.conversation ? JSON.stringify(body.conversation) : body.previous_response_id || ""; }

// The text of a user's message that has nothing else, or null.
function textOf(item) {
  if (item?.role !== "user" || (item.type ?? "message") !== "message") return null;
  const [part, ...more] = Array.isArray(item.content) ? item.content : [];
  if (part?.type === "input_text" && !more.length) return part.text;
  return typeof item.content === "string" ? item.content : null;
}

const isApproval = (call) => call.type === "mcp_approval_request";
const keyOf = (call) => (isApproval(call) ? call.id : call.call_id);

// The input item that answers a waiting call: its output, or the approval of an MCP tool's call.
function answer(call, value) {
  if (!isApproval(call)) return { type: `${call.type}_output`, call_id: call.call_id, output: value ?? "" };
  return { type: "mcp_approval_response", approval_request_id: call.id, approve: /^\s*yes\s*$/i.test(value ?? "") };
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

class Playground extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.tabs = [...this.querySelectorAll("[role=tab]")];
    this.tabs.forEach((tab) => tab.addEventListener("click", () => this.choose(tab)));
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.run(); });
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); this.run(); }
    });
    this.querySelector("[data-stop]").addEventListener("click", () => this.running?.abort());
    this.form.elements.previous.addEventListener("change", () => {
      try { this.toForm(this.fromForm()); } catch { /* The form has invalid JSON, and a run says so. */ }
    });
    this.pending = { thread: "", calls: [] };
    // The form changes only the fields of the request that a user edits. All other fields stay as they are.
    this.base = JSON.parse(this.field("body"));
    this.promptId = this.base.prompt?.id;
    this.toForm(this.waitFor(JSON.parse(this.dataset.calls), this.base));
  }

  disconnectedCallback() { this.running?.abort(); }

  field(name) { return this.form.elements[name].value; }

  get asJson() { return !this.querySelector("#pane-json").hidden; }

  choose(tab) {
    const json = tab.id === "tab-json";
    if (json !== this.asJson) {
      try {
        const body = this.body();
        if (json) this.form.elements.body.value = JSON.stringify(body, null, 2); else this.toForm(body);
      } catch (error) {
        return this.problem(`This is not valid JSON: ${error.message}`);
      }
      this.problem("");
    }
    this.tabs.forEach((each) => each.setAttribute("aria-selected", String(each === tab)));
    this.querySelector("#pane-form").hidden = json;
    this.querySelector("#pane-json").hidden = !json;
  }

  // The request as the visible tab has it.
  body() {
    if (!this.asJson) return this.fromForm();
    const body = JSON.parse(this.field("body"));
    if (!body || typeof body !== "object" || Array.isArray(body)) throw new Error("the request must be an object");
    return body;
  }

  // The calls of a response wait for their outputs, which the next request of the thread must have.
  waitFor(calls, body) {
    this.pending = { thread: thread(body), calls };
    if (!calls.length || body.input) return body;
    return { ...body, input: calls.map((call) => answer(call, "")) };
  }

  callsOf(body) { return this.pending.thread === thread(body) ? this.pending.calls : []; }

  // The parts of a request's input: the outputs of the waiting calls, a text, and all other items.
  parted(body) {
    const found = { outputs: new Map(), text: "", others: [] };
    if (typeof body.input === "string") found.text = body.input;
    if (!Array.isArray(body.input)) return found;
    const types = new Map(this.callsOf(body).map((call) => [keyOf(call), answer(call, "").type]));
    for (const item of body.input) {
      const key = item?.approval_request_id ?? item?.call_id;
      if (types.has(key) && types.get(key) === item.type) found.outputs.set(key, "approve" in item ? (item.approve ? "yes" : "no") : item.output);
      else found.others.push(item);
    }
    const text = textOf(found.others.at(-1));
    if (text !== null) {
      found.text = text;
      found.others.pop();
    }
    return found;
  }

  toForm(body) {
    this.base = body;
    const { outputs, text, others } = this.parted(body);
    const format = body.text?.format;
    const values = {
      model: shown(body.model),
      instructions: shown(body.instructions),
      previous: shown(body.previous_response_id),
      input: text,
      tools: body.tools?.length ? JSON.stringify(body.tools, null, 2) : "",
      schema: format?.type === "json_schema" ? JSON.stringify(format.schema, null, 2) : "",
    };
    for (const [name, value] of Object.entries(values)) this.form.elements[name].value = value;
    const kept = this.querySelector("[data-kept]");
    kept.hidden = !others.length;
    kept.textContent = !others.length ? "" : others.length === 1 ? "The request has 1 more input item. The tab JSON shows it." : `The request has ${others.length} more input items. The tab JSON shows them.`;
    this.outputs = this.fields("[data-outputs]", this.callsOf(body).map((call) => [
      keyOf(call), isApproval(call) ? `Approve ${call.name} of the MCP server ${call.server_label}? (yes or no)` : `Output of ${call.name}`,
      indented(call.arguments ?? call.input ?? ""), shown(outputs.get(keyOf(call))),
    ]));
    this.showPrompt(body.prompt);
    this.filled = new Map([...this.form.elements].map((each) => [each, each.value]));
  }

  showPrompt(prompt) {
    const known = prompt?.id === this.promptId ? JSON.parse(this.dataset.names) : [];
    const names = prompt ? [...new Set([...known, ...Object.keys(prompt.variables || {})])] : [];
    this.variables = this.fields("[data-prompt]", names.map((name) => [name, `Variable ${name}`, "", shown(prompt.variables?.[name])]));
    if (!prompt?.id) return;
    const place = this.querySelector("[data-prompt]");
    const head = line("Prompt ", "p", "wrap");
    const link = line(prompt.id, "a", "mono");
    const [path, query] = this.dataset.prompts.split("?");
    link.href = `${path}${encodeURIComponent(prompt.id)}${query ? `?${query}` : ""}`;
    head.append(link, prompt.version ? `, version ${prompt.version}` : ", default version");
    place.prepend(head);
    place.hidden = false;
  }

  // A labelled field for each of these keys. Returns the fields by their keys.
  fields(place, rows) {
    const box = this.querySelector(place);
    box.replaceChildren();
    box.hidden = !rows.length;
    return new Map(rows.map(([key, label, hint, value], number) => {
      const made = line("", "div", "field");
      const title = line(`${label} `, "label");
      const area = line("", "textarea", "text");
      area.id = title.htmlFor = `${box.dataset.prompt === undefined ? "output" : "variable"}-${number}`;
      area.rows = hint ? 3 : 1;
      area.value = value;
      made.append(title, area);
      if (hint) title.after(line(hint, "pre", "cut"));
      box.append(made);
      return [key, area];
    }));
  }

  edited(element) { return element.value !== this.filled.get(element); }

  fromForm() {
    const body = { ...this.base };
    const fields = this.form.elements;
    for (const [name, key] of [["model", "model"], ["instructions", "instructions"], ["previous", "previous_response_id"]]) {
      if (!this.edited(fields[name])) continue;
      if (fields[name].value.trim()) body[key] = fields[name].value; else delete body[key];
    }
    if (this.edited(fields.tools)) {
      if (fields.tools.value.trim()) body.tools = JSON.parse(fields.tools.value); else delete body.tools;
    }
    if (this.edited(fields.schema)) {
      const { format, ...text } = body.text || {};
      if (fields.schema.value.trim()) {
        const named = format?.type === "json_schema" ? format : { type: "json_schema", name: "answer" };
        body.text = { ...text, format: { ...named, schema: JSON.parse(fields.schema.value) } };
      } else if (Object.keys(text).length) body.text = text;
      else delete body.text;
    }
    const changed = [...this.variables].filter(([, element]) => this.edited(element));
    if (changed.length) {
      const variables = { ...body.prompt.variables };
      for (const [name, element] of changed) {
        if (element.value) variables[name] = element.value; else delete variables[name];
      }
      body.prompt = { ...body.prompt, variables };
    }
    const calls = this.callsOf(body);
    if (this.edited(fields.input) || calls.length !== this.outputs.size || [...this.outputs.values()].some((each) => this.edited(each))) {
      const { outputs, others } = this.parted(this.base);
      const items = [...others, ...calls.map((call) => {
        const element = this.outputs.get(keyOf(call));
        return answer(call, element && (this.edited(element) || !outputs.has(keyOf(call))) ? element.value : outputs.get(keyOf(call)));
      })];
      const text = fields.input.value;
      if (!items.length) body.input = text;
      else body.input = text.trim() ? [...items, { role: "user", content: text }] : items;
    }
    return body;
  }

  problem(text) {
    const shown = this.querySelector(".problem");
    shown.textContent = text;
    shown.hidden = !text;
  }

  // A failed stream has an error event and an event of the failed response. The message appears once, below the answer.
  failed(text) {
    if (!this.answer.querySelector(".problem")) this.answer.append(line(text, "p", "problem"));
  }

  async run() {
    if (this.running) return;
    let body;
    try {
      body = this.body();
    } catch (error) {
      return this.problem(`This is not valid JSON: ${error.message}`);
    }
    this.problem("");
    this.answer = this.querySelector("[data-answer]");
    this.events = this.querySelector("[data-events]");
    this.answer.replaceChildren();
    this.events.replaceChildren();
    this.querySelector("[data-footer]").replaceChildren();
    this.parts = new Map();
    this.count = 0;
    this.started = performance.now();
    this.first = null;
    this.running = new AbortController();
    this.querySelector("[data-stop]").disabled = false;
    this.status("running");
    try {
      const response = await fetch(this.dataset.run, {
        method: "POST",
        headers: { "content-type": "application/json", "x-csrf-token": csrf },
        body: JSON.stringify(body),
        signal: this.running.signal,
      });
      if ((response.headers.get("content-type") || "").startsWith("text/event-stream")) await this.read(response.body);
      else await this.whole(response);
      this.status("");
    } catch (error) {
      this.status("");
      this.problem(error.name === "AbortError" ? "You stopped the request." : `The connection failed: ${error.message}`);
    } finally {
      this.running = null;
      this.querySelector("[data-stop]").disabled = true;
    }
  }

  status(text) { this.querySelector("[data-status]").textContent = text; }

  async whole(response) {
    const text = await response.text();
    let found = null;
    try { found = JSON.parse(text); } catch { /* The page shows the text unchanged. */ }
    if (found?.error) return this.problem(`${response.status}: ${found.error.message}`);
    if (found?.output) return this.finish(found);
    if (!response.ok) return this.problem(`${response.status}: the request failed. Load the page again if your session has ended.`);
    this.answer.append(line(found ? JSON.stringify(found, null, 2) : text, "pre"));
  }

  async read(stream) {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    let left = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      left += value;
      const blocks = left.split("\n\n");
      left = blocks.pop();
      blocks.forEach((block) => this.event(block));
    }
  }

  event(block) {
    const data = block.split("\n").filter((each) => each.startsWith("data:")).map((each) => each.slice(5).trimStart()).join("\n");
    if (!data || data === "[DONE]") return;
    let found;
    try { found = JSON.parse(data); } catch { return; }
    const at = (performance.now() - this.started) / 1000;
    this.count += 1;
    if (this.count <= MOST_EVENTS) {
      const follows = this.events.scrollHeight - this.events.scrollTop - this.events.clientHeight < 40;
      const row = line("", "details");
      const head = line("", "summary");
      const type = (found.type || "").replace("response.", "");
      head.append(line(at.toFixed(3), "span", "at"), line(type, "span", ["error", "failed"].includes(type) ? "type bad" : "type"), line(gist(found), "span", "data"));
      row.append(head);
      // Most rows stay closed, so the page indents the data only of rows that a user opens.
      row.addEventListener("toggle", () => row.append(line(JSON.stringify(found, null, 2), "pre")), { once: true });
      this.events.append(row);
      if (follows) this.events.scrollTop = this.events.scrollHeight;
    }
    this.show(found, at);
  }

  part(key, title, kind = "") {
    if (!this.parts.has(key)) {
      const box = line("", "article", `message ${kind}`);
      const body = title.endsWith("call") || kind === "call" ? line("", "pre") : line("", "div", "text");
      box.append(line(title, "header"), body);
      this.answer.append(box);
      this.parts.set(key, body);
    }
    return this.parts.get(key);
  }

  show(event, at) {
    const type = event.type || "";
    if (type.endsWith(".delta") && typeof event.delta === "string") {
      if (this.first === null) this.first = at;
      const title = type.includes("reasoning") ? "reasoning" : type.includes("arguments") ? "tool call" : type.includes("refusal") ? "refusal" : "assistant";
      this.part(`${event.output_index}/${title}`, title).append(event.delta);
    } else if (type === "response.output_item.added" && (event.item?.type || "").endsWith("_call")) {
      this.part(`${event.output_index}/tool call`, `${event.item.type.replaceAll("_", " ")} ${event.item.name || ""}`, "call");
    } else if (type === "response.output_item.done" && (event.item?.type || "").endsWith("_call")) {
      const { id, type: kind, status, ...rest } = event.item;
      const body = this.part(`${event.output_index}/tool call`, kind.replaceAll("_", " "), "call");
      body.textContent = event.item.arguments ? indented(event.item.arguments) : JSON.stringify(rest, null, 2);
    } else if (type === "error") {
      this.failed(event.message || event.error?.message || "The response failed.");
    } else if (["response.completed", "response.incomplete", "response.failed"].includes(type)) {
      this.finish(event.response, at);
    }
  }

  finish(response, at = (performance.now() - this.started) / 1000) {
    if (response.error) this.failed(response.error.message);
    if (!this.parts.size) {
      for (const item of response.output || []) {
        const text = (item.content || []).map((each) => each.text || each.refusal || "").join("");
        const title = item.role || (item.type || "item").replaceAll("_", " ");
        this.part(item.id || title, title, text ? "" : "call").textContent = text || JSON.stringify(item, null, 2);
      }
    }
    const used = response.usage;
    const facts = [`${at.toFixed(1)} s`];
    if (this.first !== null && this.first !== undefined) facts.push(`first token ${this.first.toFixed(2)} s`);
    if (used) facts.push(`${used.input_tokens} → ${used.output_tokens} tokens, ${used.input_tokens_details?.cached_tokens ?? 0} cached`);
    const footer = this.querySelector("[data-footer]");
    const kind = { completed: "good", failed: "bad" }[response.status] || "warn";
    footer.append(line(response.status, "span", `tag ${kind}`), line(facts.join(", "), "span"));
    if (!response.id) return;
    const place = line("The link to the request appears in a second or two.", "span");
    footer.append(place);
    this.link(response.id).then((link) => place.replaceWith(link));
    if (response.status === "failed") return;
    const next = line("Continue", "button");
    next.type = "button";
    next.addEventListener("click", () => this.proceed(response));
    footer.append(next);
  }

  // The link to the page of a request. The journal writes the entry of the request up to a second after its end.
  async link(id) {
    const address = (given) => { const [path, query] = given.split("?"); return `${path}${encodeURIComponent(id)}${query ? `?${query}` : ""}`; };
    for (let tries = 0; tries < 12; tries += 1) {
      const found = await fetch(address(this.dataset.ended)).then((answer) => answer.json()).catch(() => null);
      if (found?.ended) break;
      await pause(250);
    }
    const link = line("Open the request", "a");
    link.href = address(this.dataset.requests);
    return link;
  }

  proceed(response) {
    let body = this.base;
    try { body = this.body(); } catch { /* The request stays as it was before the invalid edit. */ }
    body = { ...body, input: "" };
    if (!body.conversation) body.previous_response_id = response.id;
    const items = response.output || [];
    const answered = new Set(items.filter((each) => each.type.endsWith("_output")).map((each) => each.call_id));
    const calls = items.filter((each) => isApproval(each) || (["function_call", "custom_tool_call"].includes(each.type) && !answered.has(each.call_id)));
    body = this.waitFor(calls, body);
    this.form.elements.body.value = JSON.stringify(body, null, 2);
    this.toForm(body);
    this.choose(this.tabs[0]);
    ([...this.outputs.values()][0] || this.form.elements.input).focus();
  }
}

customElements.define("play-ground", Playground);
