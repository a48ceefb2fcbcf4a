// The Vercel AI SDK with @ai-sdk/open-responses, which sends the whole history.
import { createOpenResponses } from "@ai-sdk/open-responses";
import { common } from "./ai_sdk_common.mjs";
import { baseURL } from "./strict.mjs";

export const scenarios = common(createOpenResponses({ name: "open", url: `${baseURL}/responses`, apiKey: "k" })("strict"));
