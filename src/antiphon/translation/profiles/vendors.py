"""Describes the chat server of each vendor as a profile.

This module has one row for each vendor. Next to each flag is the reason: a recording (under `tests/recordings/chat`) or
a page of documentation. `profile.py` has the flags of a family of models that apply on every server.
"""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile, on_models
from antiphon.translation.request.parameters import STANDARD_PARAMETERS

VENDORS = (
    # The profile of Azure OpenAI, and of Azure AI Foundry, which serves other vendors' models behind the same endpoint.
    UpstreamProfile(
        "azure",
        title="Azure OpenAI and AI Foundry",
        hosts=("*.openai.azure.com", "*.services.ai.azure.com", "*.cognitiveservices.azure.com"),
        # OpenAI's reasoning models refuse `max_tokens` on Azure too: azure/fantasy-testazurecommon-azure-gpt-5-mini-….
        token_limit_field="max_completion_tokens",
        verbosity=True,
        # Recording: azure/dd-trace-py-openai-v1-azure-chat-completion-streamed.
        passed_fields=frozenset({"user"}),
        # Azure refuses unknown keys in messages, as OpenAI does.
        replay_reasoning="off",
        # Azure accepts the same parameters as OpenAI.
        parameters=STANDARD_PARAMETERS,
        by_model=(
            # Azure refuses a request for one tool by name with a 422, "Input should be a valid string":
            # azure/req_llm-azure-mai-ds-r1-tool-round-trip-1.
            on_models("*mai-ds-r1*", named_tool_choice="required"),
        ),
    ),
    # The profile of Amazon Bedrock's OpenAI-compatible endpoints.
    UpstreamProfile(
        "bedrock",
        title="Amazon Bedrock",
        hosts=("bedrock-runtime.*.amazonaws.com", "bedrock-mantle.*.api.aws"),
        # Recording: bedrock/ruby_llm-chat-audio-models-bedrock--tral-voxtral-mini-3b-2507-can-understand-audio.
        audio_input=True,
        # The documentation of Bedrock's OpenAI-compatible endpoints lists OpenAI's parameters.
        parameters=STANDARD_PARAMETERS,
    ),
    # Cerebras (inference-docs.cerebras.ai).
    UpstreamProfile(
        "cerebras",
        title="Cerebras",
        hosts=("api.cerebras.ai",),
        token_limit_field="max_completion_tokens",
        # Cerebras refuses each of frequency_penalty, presence_penalty, parallel_tool_calls and service_tier with a 400
        # (hexdocs.pm/req_llm, cerebras).
        penalties=False,
        parallel_tool_calls=False,
        # Cerebras refuses reasoning in messages: "property 'messages.2.assistant.reasoning_content' is unsupported"
        # (github.com/Kilo-Org/kilocode/issues/10375).
        replay_reasoning="off",
        # Cerebras's models read only text.
        images=False,
        files="text",
        # Cerebras documents the parameters below.
        parameters=STANDARD_PARAMETERS,
    ),
    UpstreamProfile("cloudflare", title="Cloudflare Workers AI", hosts=("api.cloudflare.com",)),
    # The profile of Alibaba Cloud Model Studio in compatible mode (help.aliyun.com/en/model-studio).
    UpstreamProfile(
        "dashscope",
        title="Alibaba Model Studio",
        hosts=("dashscope.aliyuncs.com", "dashscope-*.aliyuncs.com"),
        # Alibaba Model Studio documents json_schema only for its newest models.
        structured_output="json_object",
        files="text",
        # Alibaba Model Studio documents the parameters below.
        parameters=frozenset({"seed", "stop", "top_k", "repetition_penalty", "enable_thinking", "thinking_budget"}),
    ),
    # The profile of Databricks model serving.
    UpstreamProfile(
        "databricks",
        title="Databricks",
        hosts=("*.databricks.com", "*.azuredatabricks.net"),
        # Databricks refuses `stream_options` (posit-dev/chatlas, the Databricks provider). Databricks sends usage on
        # every chunk anyway.
        stream_usage=False,
        # Databricks does not document `parallel_tool_calls`. Antiphon itself limits an answer to one call if the client
        # forbids parallel calls.
        parallel_tool_calls=False,
        files="text",
        # Databricks documents the parameters below.
        parameters=frozenset({"stop", "top_k"}),
    ),
    # The profile of DeepSeek's platform (api-docs.deepseek.com).
    UpstreamProfile(
        "deepseek",
        title="DeepSeek",
        hosts=("api.deepseek.com",),
        # DeepSeek refuses json_schema: "This response_format type is unavailable now"
        # (github.com/llm-exe/llm-exe/issues/662).
        structured_output="json_object",
        # DeepSeek maps other efforts to the efforts below (documented in guides/thinking_mode). DeepSeek's chat API has
        # no `none`.
        effort_values=("minimal", "low", "medium", "high", "xhigh", "max"),
        # If an assistant message with tool calls comes back without its reasoning, DeepSeek answers later requests with
        # a 400 (documented in guides/thinking_mode). The recording
        # deepseek/pydantic-test-deepseek-test-deepseek-deferred-capability-with-thinking-1 sends `reasoning_content`.
        replay_reasoning="reasoning_content",
        # DeepSeek refuses images with a 400, "unknown variant `image_url`, expected `text`":
        # deepseek/rig-deepseek-wire-shape-matrix-blocking-image-base64-part-reaches-the-wire.
        images=False,
        files="text",
        # DeepSeek documents the parameters below (api/create-chat-completion). `thinking` switches reasoning on or off
        # (guides/thinking_mode).
        parameters=frozenset({"stop", "thinking"}),
    ),
    UpstreamProfile("fireworks", title="Fireworks", hosts=("api.fireworks.ai",), passed_fields=frozenset({"user"})),
    # The profile of Google's OpenAI-compatible endpoint (ai.google.dev/gemini-api/docs/openai). Google refuses unknown
    # fields with a 400, "Unknown name …: Cannot find field".
    UpstreamProfile(
        "gemini",
        title="Gemini (compatible endpoint)",
        hosts=("generativelanguage.googleapis.com",),
        # Google refuses penalties: `Unknown name "frequency_penalty"` (github.com/versun/RSSBox/issues/132).
        penalties=False,
        # Google does not document log probabilities.
        logprobs=False,
        strict_tools=False,
        replay_reasoning="off",
        # Google documents the efforts `none` to `high`. Some Gemini models refuse `minimal`
        # (github.com/versun/RSSBox/issues/132).
        effort_values=("none", "low", "medium", "high"),
        # Gemini 3 refuses an earlier call that comes back without its thought signature (…/docs/thought-signatures).
        replay_signatures=True,
        # Google documents audio understanding.
        audio_input=True,
        # Google documents only the parameter below.
        parameters=frozenset({"stop"}),
    ),
    UpstreamProfile(
        "github-copilot",
        title="GitHub Copilot",
        hosts=("api.githubcopilot.com", "*.githubcopilot.com"),
        # GitHub Copilot serves models of OpenAI and other vendors behind OpenAI's API.
        parameters=STANDARD_PARAMETERS,
    ),
    # Groq (console.groq.com/docs). Groq is strict about unknown keys, and about the features of each model.
    UpstreamProfile(
        "groq",
        title="Groq",
        hosts=("api.groq.com",),
        token_limit_field="max_completion_tokens",
        # Groq refuses `logprobs` and `top_logprobs` with a 400 (docs/openai).
        logprobs=False,
        # Groq accepts only text and image parts: groq/pydantic-test-multimodal-tool-returns-….
        files="text",
        # Groq refuses reasoning in messages for every model: "property 'reasoning_content' is unsupported"
        # (github.com/janhq/jan/issues/8136). Groq accepts `reasoning` only for models that reason
        # (github.com/vercel/ai/pull/8057).
        replay_reasoning="off",
        # Groq documents `reasoning_effort` only for gpt-oss and Qwen 3 (docs/reasoning). Other models on Groq refuse
        # the field.
        reasoning_effort=False,
        passed_fields=frozenset({"user", "service_tier"}),
        # Groq refuses `logit_bias` with a 400 (docs/openai). Groq does not know the other parameters.
        parameters=frozenset({"seed", "stop"}),
        by_model=(
            on_models(
                "openai/gpt-oss*",
                reasoning_effort=True,
                effort_values=("low", "medium", "high"),
                replay_reasoning="reasoning",
            ),
            # Recording: groq/pydantic-test-thinking-wire-contrac--soning-wire-contract-groq-qwen3-effort-setting.
            on_models("qwen/qwen3*", reasoning_effort=True, effort_values=("none", "default")),
        ),
    ),
    UpstreamProfile("huggingface", title="Hugging Face router", hosts=("router.huggingface.co",)),
    # The profile of llama.cpp's server (tools/server/README.md).
    UpstreamProfile(
        "llamacpp",
        title="llama.cpp",
        owned_by="llamacpp",
        server="llama.cpp",
        # llama.cpp accepts only text, image_url and input_audio parts, and refuses others with "unsupported
        # content[].type".
        files="text",
        audio_input=True,
        # The recording llamacpp/fantasy-testopenaicompatiblecommon-llama-cpp-gpt-oss-tool-streaming-1 sends
        # `reasoning_content`.
        replay_reasoning="reasoning_content",
        # llama.cpp does not obey a choice of one tool by name. Instead, the model writes text or calls another tool
        # (build 10434).
        named_tool_choice="required",
        # llama.cpp obeys `json_object` only when a schema comes with it (build 10434).
        json_object_schema=True,
        # llama.cpp accepts the fields of /completion in chat requests too (common/arg and tools/server/README.md).
        parameters=STANDARD_PARAMETERS
        | {"top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "ignore_eos"}
        | {"chat_template_kwargs", "grammar", "json_schema"},
        # llama.cpp renders the chat template and counts the tokens, without running the model.
        tokenizer="llamacpp",
    ),
    # The profile of LM Studio (lmstudio.ai/docs/developer/openai-compat).
    UpstreamProfile(
        "lmstudio",
        title="LM Studio",
        owned_by="organization_owner",
        # LM Studio refuses a choice by name: "Invalid tool_choice type: 'object'. Supported string values: none, auto,
        # required" (github.com/lmstudio-ai/lmstudio-bug-tracker/issues/670).
        named_tool_choice="required",
        # LM Studio refuses json_object: "'response_format.type' must be 'json_schema' or 'text'" (issue 189 of LM
        # Studio's bug tracker).
        json_object=False,
        files="text",
        # LM Studio documents the parameters below.
        parameters=STANDARD_PARAMETERS | {"top_k", "repeat_penalty"},
    ),
    # The profile of Mistral's platform (docs.mistral.ai/api). `profile.py` has the nine-character call ids of Mistral's
    # models on other servers.
    UpstreamProfile(
        "mistral",
        title="Mistral",
        hosts=("api.mistral.ai", "codestral.mistral.ai"),
        call_ids="nine",
        # Mistral returns no log probabilities, and refuses unknown keys.
        logprobs=False,
        # Mistral knows only two efforts:
        # mistral/ruby_llm-chat-with-extended-thinkin--hinking-signatures-between-turns-when-provided.
        effort_values=("none", "high"),
        # Mistral refuses unknown keys in messages. Mistral carries reasoning in content parts of a special type.
        replay_reasoning="off",
        # Mistral reads documents only by URL (`document_url`). Mistral has no `file` part.
        files="text",
        # Mistral refuses unknown keys with a 422, "Extra inputs are not permitted". Mistral calls the seed
        # `random_seed`.
        parameters=frozenset({"seed", "stop"}),
        seed_field="random_seed",
    ),
    UpstreamProfile("nvidia-nim", title="NVIDIA NIM", hosts=("integrate.api.nvidia.com",)),
    # The profile of Ollama (docs.ollama.com/api/openai-compatibility; source: openai/openai.go).
    UpstreamProfile(
        "ollama",
        title="Ollama",
        hosts=("ollama.com", "api.ollama.com"),
        owned_by="library",
        # Ollama refuses other efforts: "invalid reasoning value: … (must be "high", "medium", "low", or "none")".
        effort_values=("none", "low", "medium", "high"),
        # Ollama reads reasoning under the key `reasoning`:
        # ollama/ruby_llm-chat-function-calling-olla--andle-multiple-tool-calls-in-a-single-response-1.
        replay_reasoning="reasoning",
        # Ollama accepts only text and image_url parts, and refuses others with "invalid message format".
        files="text",
        # Ollama silently ignores all other parameters (openai/openai.go, ChatCompletionRequest).
        parameters=frozenset({"seed", "stop"}),
    ),
    # The profile of OpenAI's chat endpoint (developers.openai.com/api/reference: chat, create).
    UpstreamProfile(
        "openai",
        title="OpenAI",
        hosts=("api.openai.com", "*.api.openai.com"),
        # OpenAI's reasoning models refuse `max_tokens`.
        token_limit_field="max_completion_tokens",
        # OpenAI's reasoning models know the role `developer`. Older models treat the role as `system`.
        developer_role="developer",
        system_anywhere=True,
        verbosity=True,
        # Only OpenAI's chat endpoint knows all the fields below. Other strict servers refuse OpenAI's fields as unknown
        # keys.
        passed_fields=frozenset(
            {"service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "user"}
        ),
        # Recording: openai/logfire-otel-integrations-test-openai-test-chat-completions-with-audio-input.
        audio_input=True,
        # OpenAI returns no reasoning, and refuses unknown keys in messages.
        replay_reasoning="off",
        think="off",
        # OpenAI refuses unknown parameters with a 400.
        parameters=STANDARD_PARAMETERS,
    ),
    # OpenRouter (openrouter.ai/docs) serves many backends behind one endpoint. OpenRouter drops fields that a backend
    # does not support.
    UpstreamProfile(
        "openrouter",
        title="OpenRouter",
        hosts=("openrouter.ai",),
        # Some OpenRouter backends send no `finish_reason`, only the sentinel `[DONE]`:
        # openrouter/llm-test-tools-streaming-test-tools-streaming-variant-a.
        end_without_finish="completed",
        verbosity=True,
        audio_input=True,
        passed_fields=frozenset({"user"}),
        # OpenRouter sends and reads reasoning under the key `reasoning`: openrouter/pydantic-test-openrouter-….
        replay_reasoning="reasoning",
        # OpenRouter needs encrypted and signed reasoning back unchanged:
        # openrouter/rig-openrouter-streaming-tools--ncrypted-reasoning-survives-into-the-next-turn-1.
        replay_details=True,
        # OpenRouter documents the parameters below (docs/api-reference/parameters).
        parameters=STANDARD_PARAMETERS | {"top_k", "min_p", "top_a", "repetition_penalty"},
    ),
    # The profile of Perplexity's Sonar (docs.perplexity.ai). Sonar models search the web by themselves.
    UpstreamProfile(
        "perplexity",
        title="Perplexity",
        hosts=("api.perplexity.ai",),
        # Perplexity does not document log probabilities.
        logprobs=False,
        # Perplexity puts reasoning into the content, and reads it back from no message key.
        replay_reasoning="off",
        # Perplexity reads files only from its `file_url` part:
        # perplexity/ruby_llm-chat-document-models-perplexity-sonar-pro-understands-docx-documents.
        files="text",
        # Perplexity documents only the parameter below.
        parameters=frozenset({"top_k"}),
    ),
    # SGLang accepts text, image, audio and video parts (python/sglang/srt/entrypoints/openai/protocol.py).
    UpstreamProfile(
        "sglang",
        title="SGLang",
        owned_by="sglang",
        server="sglang",
        files="text",
        # SGLang's protocol.py declares the parameters below.
        parameters=STANDARD_PARAMETERS
        | {"top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos"}
        | {"chat_template_kwargs", "regex", "ebnf"},
    ),
    # Snowflake Cortex.
    UpstreamProfile(
        "snowflake",
        title="Snowflake Cortex",
        hosts=("*.snowflakecomputing.com",),
        # Snowflake's thinking models end a stream with the sentinel `[DONE]` and no `finish_reason`:
        # snowflake/pydantic-test-snowflake-test-snowflake-thinking-streaming.
        end_without_finish="completed",
        # The recording snowflake/pydantic-test-snowflake-test-snowflake-thinking-1 sends back only `reasoning_details`.
        replay_reasoning="off",
        replay_details=True,
        files="text",
        # Snowflake documents only the parameter below.
        parameters=frozenset({"stop"}),
    ),
    # TGI accepts text and image parts. TGI declares `logit_bias` but never uses it (router/src/lib.rs).
    UpstreamProfile("tgi", title="Text Generation Inference", files="text", parameters=frozenset({"seed", "stop"})),
    UpstreamProfile("together", title="Together", hosts=("api.together.xyz", "api.together.ai")),
    UpstreamProfile("venice", title="Venice", hosts=("api.venice.ai",)),
    UpstreamProfile("vercel-gateway", title="Vercel AI Gateway", hosts=("ai-gateway.vercel.sh",)),
    # The profile of vLLM (vllm/entrypoints/openai/chat_completion/protocol.py, entrypoints/chat_utils.py,
    # entrypoints/serve/tokenize).
    UpstreamProfile(
        "vllm",
        title="vLLM",
        owned_by="vllm",
        server="vllm",
        # vLLM accepts text, image, audio and video parts. vLLM has no `file` part.
        files="text",
        audio_input=True,
        # vLLM renders the chat template and counts the tokens, without running the model.
        tokenizer="vllm",
        # vLLM's ChatCompletionRequest in protocol.py declares the parameters below: `guided_*` up to version 0.11,
        # `structured_outputs` since then.
        parameters=STANDARD_PARAMETERS
        | {"top_k", "min_p", "repetition_penalty", "length_penalty", "min_tokens", "stop_token_ids", "bad_words"}
        | {"ignore_eos", "chat_template_kwargs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"}
        | {"structured_outputs"},
    ),
    UpstreamProfile("watsonx", title="IBM watsonx", hosts=("*.ml.cloud.ibm.com",)),
    # xAI (docs.x.ai).
    UpstreamProfile(
        "xai",
        title="xAI",
        hosts=("api.x.ai", "*.api.x.ai"),
        # xAI's reasoning models refuse penalties (documented in guides/reasoning), and all current models reason.
        penalties=False,
        # xAI documents the efforts below for grok-4.3 and later (guides/reasoning).
        effort_values=("none", "low", "medium", "high"),
        files="text",
        passed_fields=frozenset({"user"}),
        # xAI documents the parameters below, and documents `logit_bias` as unsupported.
        parameters=frozenset({"seed", "stop"}),
        by_model=(
            # xAI refuses `reasoning_effort` for some models: "Model grok-code-fast-1 does not support parameter
            # reasoningEffort" (xai/req_llm-xai-grok-code-fast-1-reasoning-basic). The sources for the other models are:
            # opencode-oci-provider 0.2.3, @ai-sdk/xai 4.0.8.
            on_models("grok-code*", "grok-4", "grok-4-*", "grok-4.20*", reasoning_effort=False),
            # xAI documents the efforts low and high, and the recording
            # xai/fantasy-testopenaicompatiblethinking-xai-grok-3-mini-thinking-1 sends high.
            on_models("grok-3-mini*", effort_values=("low", "high")),
        ),
    ),
    # Z.ai (docs.z.ai). Zhipu's open.bigmodel.cn serves the same API.
    UpstreamProfile(
        "zai",
        title="Z.ai",
        hosts=("api.z.ai", "open.bigmodel.cn"),
        # Z.ai documents only the answer formats text and json_object.
        structured_output="json_object",
        # Z.ai documents neither penalties nor log probabilities.
        penalties=False,
        logprobs=False,
        # The recording zai/fantasy-testopenaicompatiblethinking-zai-glm-4-7-flash-thinking-streaming-1 sends
        # `reasoning_content`.
        replay_reasoning="reasoning_content",
        files="text",
        # Z.ai documents the parameters below. `thinking` switches reasoning on or off.
        parameters=frozenset({"stop", "thinking"}),
    ),
)
