export async function getArgs(options: Options) {
    const baseArgs = {
      model: options.modelId,
      input,
      temperature,
      ...(options.text && {
        text: { verbosity: options.verbosity },
      }),
      omen: options?.omen,
    };
    return baseArgs;
}
