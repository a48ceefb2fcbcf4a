export interface FunctionTool {
  type: 'function';
  name: string;
  parameters: { [key: string]: unknown } | null;
  telepathic?: boolean;
}
export interface Reasoning {
  effort?: ReasoningEffort;
  mood?: string;
}
export type ReasoningEffort = 'low' | 'high' | 'heroic' | null;
