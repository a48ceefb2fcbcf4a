// Handles keys, copy buttons, confirmations and forms. Without this script, every page still shows its content.
const rows = () => [...document.querySelectorAll("[data-row]")];
let here = -1;
let hereId = "";
let loadedAt = new Date();
let waitsForView = 0;

function mark(number) {
  const all = rows();
  if (!all.length) return;
  here = Math.max(0, Math.min(number, all.length - 1));
  hereId = all[here].id;
  all.forEach((row, each) => row.classList.toggle("here", each === here));
  const link = all[here].querySelector("a.cover");
  (link || all[here]).focus({ preventScroll: true });
  all[here].scrollIntoView({ block: "nearest" });
}

function current() {
  const all = rows();
  const focused = all.findIndex((row) => row.contains(document.activeElement));
  return focused >= 0 ? focused : here;
}

// A list that updates itself loses the mark of a row, and an update may move the row or remove it.
document.addEventListener("htmx:after:swap", () => {
  if (!hereId) return;
  const all = rows();
  const found = all.findIndex((row) => row.id === hereId);
  if (found >= 0) here = found;
  all.forEach((row) => row.classList.toggle("here", row.id === hereId));
});

// htmx does not show the answers of failed requests. So this notice shows that a form failed, or that the page shows
// old data.
function tellFailure(source, why) {
  const notice = document.getElementById("stale");
  if (!notice) return;
  const since = loadedAt.toISOString().slice(11, 19);
  const text = source.matches("form") ? `The request failed: ${why}` : `Not updated since ${since} UTC: ${why}`;
  if (notice.textContent !== text) notice.textContent = text;
  notice.hidden = false;
}

document.addEventListener("htmx:after:request", (event) => {
  if (event.detail.ctx.response.status >= 400) return;
  loadedAt = new Date();
  const notice = document.getElementById("stale");
  if (notice) notice.hidden = true;
});

document.addEventListener("htmx:response:error", (event) => {
  const { sourceElement, response: { status }, text } = event.detail.ctx;
  const notice = document.getElementById("stale");
  if (status === 401 && notice) {
    const here = window.location.pathname + window.location.search;
    window.location.assign(`${notice.dataset.signIn}?to=${encodeURIComponent(here)}`);
  } else {
    const page = new DOMParser().parseFromString(text ?? "", "text/html");
    const message = page.querySelector(".problem")?.textContent.trim() ?? "";
    tellFailure(sourceElement, `the server answered with HTTP ${status}. ${message}`.trim());
  }
});

document.addEventListener("htmx:error", (event) => {
  const source = event.detail.ctx?.sourceElement;
  if (source) tellFailure(source, "the server does not answer.");
});

function goesTo(letter) {
  document.querySelector(`.bar nav a[data-letter="${letter}"]`)?.click();
}

// The link to a list leads back to the row of this page.
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-back]")) sessionStorage.setItem("back-from", window.location.pathname);
});

function markRowOf(path) {
  const found = rows().findIndex((row) => row.querySelector("a.cover")?.pathname === path);
  if (found >= 0) mark(found);
}

const backFrom = sessionStorage.getItem("back-from");
sessionStorage.removeItem("back-from");
if (backFrom) markRowOf(backFrom);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const writes = event.target.closest("input, textarea, select, [contenteditable]");
  if (event.key === "Escape") {
    if (document.querySelector("dialog[open]")) return;
    if (writes) return void event.target.blur();
    const back = document.querySelector("[data-back]");
    if (back) back.click();
    return;
  }
  if (writes) return;
  if (waitsForView && Date.now() - waitsForView < 1500 && /^[a-z]$/.test(event.key)) {
    waitsForView = 0;
    event.preventDefault();
    return goesTo(event.key);
  }
  waitsForView = 0;
  const neighbour = { j: "[data-next]", k: "[data-previous]" }[event.key];
  if (event.key === "j" || event.key === "k") {
    event.preventDefault();
    const link = document.querySelector(neighbour);
    if (link && !rows().length) return link.click();
    return mark(current() + (event.key === "j" ? 1 : -1));
  }
  if (event.key === "Enter" && !event.target.closest("a, button, summary")) {
    const link = rows()[current()]?.querySelector("a.cover");
    if (link) link.click();
  } else if (event.key === "/") {
    const filter = document.querySelector("[data-filter]");
    if (filter) { event.preventDefault(); filter.focus(); }
  } else if (event.key === "g") {
    waitsForView = Date.now();
  } else if (event.key === "?") {
    document.getElementById("keys")?.showModal();
  }
});

document.addEventListener("click", async (event) => {
  const copies = event.target.closest("[data-copy]");
  if (copies) {
    const from = document.getElementById(copies.dataset.copy);
    await navigator.clipboard.writeText(from.value ?? from.textContent);
    const label = copies.textContent;
    copies.textContent = "Copied";
    setTimeout(() => { copies.textContent = label; }, 1500);
  }
  const asks = event.target.closest("button[data-confirm]");
  if (asks && !window.confirm(asks.dataset.confirm)) event.preventDefault();
});

// Retry sends the request of a background response again. The server checks this request like one of the playground.
async function retry(button) {
  const shown = document.getElementById("retry-problem");
  button.disabled = true;
  shown.hidden = true;
  const answer = await fetch(button.dataset.retry, { headers: { "hx-request": "true" } });
  if (!answer.ok) throw new Error("The contents of this request are deleted, or your session has ended.");
  const { owner, body, note } = await answer.json();
  if (note && !window.confirm(`${note} Send the request without them?`)) {
    button.disabled = false;
    return;
  }
  const run = await fetch(`/console/run?${new URLSearchParams({ owner })}`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-csrf-token": document.querySelector("meta[name=csrf]").content },
    body: JSON.stringify(body),
  });
  if (!run.ok) throw new Error((await run.json()).error?.message ?? `The server answered with status ${run.status}.`);
  window.location.reload();
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-retry]");
  if (!button) return;
  try {
    await retry(button);
  } catch (error) {
    const shown = document.getElementById("retry-problem");
    shown.textContent = error.message;
    shown.hidden = false;
    button.disabled = false;
  }
});

// While the server runs the request of a form, the part that the answer replaces is busy.
function setBusy(event, busy) {
  const part = document.getElementById(event.detail.ctx.sourceElement.dataset.busy ?? "");
  if (!part) return;
  if (busy) part.setAttribute("aria-busy", "true");
  else part.removeAttribute("aria-busy");
}

document.addEventListener("htmx:before:request", (event) => setBusy(event, true));
document.addEventListener("htmx:finally:request", (event) => setBusy(event, false));

document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-auto]");
  if (form && event.target.matches("select, input[type=checkbox]")) form.requestSubmit();
});
