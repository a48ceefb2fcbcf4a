"""How our answers differ from what OpenAI's service sent for the same output, and why. Nothing else may differ.

Lives here: the list, by reason. Not here: how a difference is found and named (`reverse.py`).

Invariant: every line happens in some recording; one that does not any more must go (`test_reverse.py`).
"""

from __future__ import annotations

DIFFERENCES: dict[str, tuple[str, ...]] = {
    # Where the difference is wanted
    "Open Responses or OpenAI's SDKs require the key; the service leaves it out": (
        "error.code: sent here only",
        "error.message: sent here only",
        "error.param: sent here only",
        "function_call_arguments.done.name: sent here only",
        "response.usage.input_tokens_details.cache_write_tokens: sent here only",
    ),
    "deltas are padded only when the request asks for it": (
        "apply_patch_call_operation_diff.delta.obfuscation: not sent",
        "function_call_arguments.delta.obfuscation: not sent",
        "output_text.delta.obfuscation: not sent",
        "reasoning_summary_text.delta.obfuscation: not sent",
        "shell_call_command.delta.obfuscation: not sent",
    ),
    "no schema of a client's is rewritten: an omitted strict stays null, and the parameters stay as they are": (
        "tool function.parameters: another value",
        "tool function.strict: null, not bool",
    ),
    "the names of projects and organisations of the upstream's account are none of the client's business": (
        "error.error.message: another value",
        "response.error.message: another value",
    ),
    "the type of an error event is Open Responses' name; OpenAI has one for each kind of limit": (
        "error.error.type: another value",
    ),
    "the model is echoed under the name it was asked for; OpenAI names the snapshot behind it": (
        "response.model: another value",
    ),
    # What nobody but OpenAI can know
    "defaults of OpenAI's models; a chat server does not tell its own": (
        "response.prompt_cache_retention: null, not string",
        "response.reasoning.effort: null, not string",
        "response.top_p: another value",
    ),
    "belongs to OpenAI's platform: bills, moderation, content filters, its own tools": (
        "response.billing: not sent",
        "response.content_filters: not sent",
        "response.moderation: not sent",
        "response.tool_usage: not sent",
        "tool function.output_schema: not sent",
    ),
    "a tool that programs alone may call is left out and named: there are no programs here": (
        "response.metadata.antiphon_ignored: sent here only",
        "tool function: not echoed",
    ),
    "a phase is known here when the message is over; older models of OpenAI's have none": (
        "message added.phase: not sent",
        "message done.phase: sent here only",
    ),
    "only OpenAI's newest models have it; absent for all others": (
        "reasoning added.content: not sent",
        "reasoning done.content: not sent",
        "response.reasoning.context: not sent",
        "response.reasoning.mode: not sent",
    ),
    "OpenAI's newest models begin some items with the status completed; all others do not": (
        "function_call added.status: another value",
        "message added.status: another value",
    ),
    "citations of files need hosted file search; Chat tells where a citation is, not when it was made": (
        "content_part.done.part.annotations: another length",
        "grammar of message: annotations at another place",
        "grammar of message: no annotations",
        "message done.content[].annotations: another length",
    ),
    "reasoning before and after a hosted call, which is left out here, becomes one item": (
        "output: another number of items",
        "response.output: another length",
    ),
    "tools that a search at OpenAI brought in, under namespaces it invents": (
        "function_call done.name: another value",
        "function_call done.namespace: not sent",
        "tool function: echoed here only",
        "tool namespace: not echoed",
        "tool tool_search: not echoed",
    ),
    "OpenAI echoes no local_shell; here a tool that was taken is echoed": ("tool local_shell: echoed here only",),
    "the container is OpenAI's; the test declares a local shell instead": (
        "shell_call added.environment.container_id: not sent",
        "shell_call added.environment.type: another value",
        "shell_call done.environment.container_id: not sent",
        "shell_call done.environment.type: another value",
        "tool shell.environment.container_id: not sent",
        "tool shell.environment.type: another value",
    ),
    "an organisation that keeps nothing: the service changed the request's store": ("response.store: another value",),
    # What the recording lacks or has wrong
    "the recording is older than the key (the first streams are from March 2025), or the fixture was shortened": (
        "content_part.added.part.logprobs: sent here only",
        "content_part.done.part.logprobs: sent here only",
        "message done.content[].logprobs: sent here only",
        "output_text.delta.logprobs: sent here only",
        "output_text.done.logprobs: sent here only",
        "response.background: sent here only",
        "response.completed_at: sent here only",
        "response.frequency_penalty: sent here only",
        "response.max_tool_calls: sent here only",
        "response.presence_penalty: sent here only",
        "response.prompt_cache_key: sent here only",
        "response.prompt_cache_retention: sent here only",
        "response.reasoning.generate_summary: not sent",
        "response.reasoning.summary: sent here only",
        "response.safety_identifier: sent here only",
        "response.service_tier: sent here only",
        "response.text.verbosity: sent here only",
        "response.top_logprobs: sent here only",
    ),
    "the fixture's authors cut texts or keys": (
        "content_part.done.part.text: another value",
        "error.error.code: another value",
        "error.error.type: sent here only",
        "message done.content[].text: another value",
        "output_text.done.text: another value",
        "tool tool_search.description: another value",
    ),
    "the service rounds log probabilities in the finished item; once it counted -9 tokens and named no tier": (
        "message done.content[].logprobs[].logprob: another value",
        "response.service_tier: another value",
        "response.usage.output_tokens: another value",
        "response.usage.total_tokens: another value",
    ),
    "a prompt that is kept in OpenAI's account, with the model it names": (
        "refused: Missing required parameter: 'model'.",
    ),
}
