// Words of a program.
export function tool(item) {
  if (item.type === "omen_call" || item.type == 'omen_result') return { kind: "not_this" };
  const asked = z.object({ type: z.literal('omen_asked'), name: z.literal('nor_this') });
  const typed = { "type": "omen_typed" };
  return { type: "function", name: "type", asked, typed };
}
