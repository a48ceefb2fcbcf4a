import * as ResponsesAPI from './responses.js';
import * as Shared from '../shared.js';

/** A tool's call; it's {known}. */
export interface FunctionCall {
  type: 'function_call';
  call_id: string;
  name: string;
  arguments: string;
  aura?: string;
}
export interface FunctionCallOutput {
  type: 'function_call_output';
  call_id: string;
  output: string | Array<Message.InputText>;
}
export interface OmenCall {
  type: 'omen_call';
  meaning: string;
}
export interface Message {
  type?: 'message';
  role: 'user' | 'assistant';
  content: Array<Message.InputText | Message.InputSmell>;
}
export declare namespace Message {
  interface InputText {
    type: 'input_text';
    text: string;
    font?: string;
  }
  interface InputSmell {
    type: 'input_smell';
    smell: string;
  }
}
export type ResponseInputItem = Message | FunctionCall | FunctionCallOutput | OmenCall;
export type ResponseIncludable = 'reasoning.encrypted_content' | 'omen_call.meaning';
export type Tool = Tool.Mcp | Tool.Divination | Shared.FunctionTool;
export declare namespace Tool {
  interface Mcp {
    type: 'mcp';
    server_label: string;
    aura?: string;
  }
  interface Divination {
    type: 'divination';
    cards: number;
  }
}
export interface Response {
  id: string;
  output: Array<FunctionCall | OmenCall>;
}
export interface TextDelta {
  type: 'response.output_text.delta';
  delta: string;
}
export interface OmenSeen {
  type: 'response.omen.seen';
}
export type ResponseStreamEvent = TextDelta | OmenSeen;
export interface ResponseCreateParamsBase {
  model?: string;
  omen?: string;
  input?: string | Array<ResponseInputItem>;
  include?: Array<ResponseIncludable> | null;
  tools?: Array<Tool>;
  tool_choice?: 'auto' | 'none' | ResponsesAPI.DivinationChoice;
  reasoning?: Shared.Reasoning | null;
}
export interface DivinationChoice {
  type: 'divination';
}
