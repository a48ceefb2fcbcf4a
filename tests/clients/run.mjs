// Runs the scenarios of one file: node run.mjs openai_node.mjs. One line of JSON each.
const { scenarios } = await import(new URL(process.argv[2], import.meta.url));
for (const [name, scenario] of Object.entries(scenarios)) {
  let result = { scenario: name, ok: false };
  try {
    result.ok = (await scenario()) === true;
  } catch (error) {
    result.why = String(error?.stack ?? error).slice(0, 600);
  }
  console.log(JSON.stringify(result));
}
process.exit(0);
