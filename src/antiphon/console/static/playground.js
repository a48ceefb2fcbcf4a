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
    // Fields that the form does not show stay as the page gave them.
    this.base = JSON.parse(this.field("body"));
  }

  disconnectedCallback() { this.running?.abort(); }

  field(name) { return this.form.elements[name].value; }

  get asJson() { return !this.querySelector("#pane-json").hidden; }

  choose(tab) {
    const json = tab.id === "tab-json";
    if (json && !this.asJson) this.form.elements.body.value = JSON.stringify(this.fromForm(), null, 2);
    this.tabs.forEach((each) => each.setAttribute("aria-selected", String(each === tab)));
    this.querySelector("#pane-form").hidden = json;
    this.querySelector("#pane-json").hidden = !json;
  }

  fromForm() {
    const body = { ...this.base, model: this.field("model"), input: this.field("input"), stream: true };
    if (!body.model) delete body.model;
    for (const [name, value] of [["instructions", this.field("instructions")], ["previous_response_id", this.field("previous")]]) {
      if (value.trim()) body[name] = value; else delete body[name];
    }
    if (this.field("tools").trim()) body.tools = JSON.parse(this.field("tools")); else delete body.tools;
    if (this.field("schema").trim()) {
      body.text = { format: { type: "json_schema", name: "answer", schema: JSON.parse(this.field("schema")) } };
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
      body = this.asJson ? JSON.parse(this.field("body")) : this.fromForm();
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
    if (response.id) {
      const [path, query] = this.dataset.requests.split("?");
      const link = line("Open the request", "a");
      link.href = `${path}${encodeURIComponent(response.id)}${query ? `?${query}` : ""}`;
      const next = line("Continue", "button");
      next.type = "button";
      next.addEventListener("click", () => {
        this.base = { ...this.base, previous_response_id: response.id };
        this.form.elements.previous.value = response.id;
        this.form.elements.input.value = "";
        this.choose(this.tabs[0]);
        this.form.elements.input.focus();
      });
      footer.append(link);
      if (response.status !== "failed") footer.append(next);
    }
  }
}

customElements.define("play-ground", Playground);
