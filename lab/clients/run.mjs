// Runs the scenarios of one file: node run.mjs ./openai_node.mjs. One line of JSON each; one passes that throws nothing.
const { scenarios } = await import(new URL(process.argv[2], import.meta.url));
for (const [name, scenario] of Object.entries(scenarios)) {
  const result = { scenario: name, ok: false };
  const began = performance.now();
  try {
    await scenario();
    result.ok = true;
  } catch (error) {
    result.why = String(error?.stack ?? error).slice(0, 1500);
  }
  result.seconds = Math.round(performance.now() - began) / 1000;
  console.log(JSON.stringify(result));
}
process.exit(0);
