// What scenarios in Node need: to script the strict chat server, to see what it received, to compare.
import assert from "node:assert/strict";

const upstream = process.env.UPSTREAM_URL;
export const baseURL = process.env.BASE_URL;
export const HELLO = "Hello from the model.";
// A red square of 8 by 8.
export const PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAAAElFTkSuQmCC";

// The chat server's next answers (scripted_answers.py tells their form); forgets what it received.
export const script = async (...answers) => {
  const answer = await fetch(`${upstream}/script`, { method: "POST", body: JSON.stringify(answers) });
  assert.equal(answer.status, 200);
};
// The chat requests since the last script.
export const received = async () => (await fetch(`${upstream}/received`)).json();
// Waits, within bounds, until the gateway has left an answer that was still open; whether it has.
export const left = async () => (await fetch(`${upstream}/left`)).json();
// Breaks off the answer that is held open.
export const cut = async () => (await fetch(`${upstream}/cut`, { method: "POST" })).json();
export const roles = (chat) => chat.messages.map((message) => message.role);
export const same = assert.deepEqual;
