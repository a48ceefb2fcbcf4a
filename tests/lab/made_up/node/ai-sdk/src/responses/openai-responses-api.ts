import { z } from 'zod/v4';

const chunk = () =>
  z.union([
    z.object({ type: z.literal('response.output_text.delta'), delta: z.string() }),
    z.object({ type: z.literal('response.omen.seen') }),
  ]);

export type OpenAIResponsesInputItem =
  | { type?: 'message'; role: 'user'; content: Array<{ type: 'input_text'; text: string }> }
  | { type: 'function_call_output'; call_id: string; output: string }
  | { type: 'omen_call'; meaning: z.infer<ReturnType<typeof chunk>> };

export type OpenAIResponsesIncludeValue =
  | 'reasoning.encrypted_content'
  | 'omen_call.meaning';

export type OpenAIResponsesTool =
  | { type: 'function'; name: string; parameters: JSONSchema7 }
  | { type: 'web_search'; filters: { allowed_domains: string[] | undefined } | undefined; aura: string };
