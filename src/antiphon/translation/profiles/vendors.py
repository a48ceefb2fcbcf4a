"""The vendors' profiles, by name.

Lives here: rows with a reason next to each flag: a recording (under `tests/recordings/chat`) or a page of
documentation. Not here: what holds for a family of models wherever it is served (`profile.py`).
"""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile, on_models
from antiphon.translation.request.parameters import STANDARD_PARAMETERS

VENDORS = (
    # Azure OpenAI, and Azure AI Foundry, which serves other makers' models behind the same endpoint.
    UpstreamProfile(
        "azure",
        title="Azure OpenAI and AI Foundry",
        hosts=("*.openai.azure.com", "*.services.ai.azure.com", "*.cognitiveservices.azure.com"),
        # As OpenAI, whose reasoning models refuse `max_tokens`: azure/fantasy-testazurecommon-azure-gpt-5-mini-….
        token_limit_field="max_completion_tokens",
        verbosity=True,
        # azure/dd-trace-py-openai-v1-azure-chat-completion-streamed.
        passed_fields=frozenset({"user"}),
        # As OpenAI: unknown keys in messages are refused.
        replay_reasoning="off",
        # As OpenAI.
        parameters=STANDARD_PARAMETERS,
        by_model=(
            # A 422, "Input should be a valid string", for a tool by name:
            # azure/req_llm-azure-mai-ds-r1-tool-round-trip-1.
            on_models("*mai-ds-r1*", named_tool_choice="required"),
        ),
    ),
    # Amazon Bedrock's OpenAI-compatible endpoints.
    UpstreamProfile(
        "bedrock",
        title="Amazon Bedrock",
        hosts=("bedrock-runtime.*.amazonaws.com", "bedrock-mantle.*.api.aws"),
        # bedrock/ruby_llm-chat-audio-models-bedrock--tral-voxtral-mini-3b-2507-can-understand-audio.
        audio_input=True,
        # Documented for its OpenAI-compatible endpoints: OpenAI's own.
        parameters=STANDARD_PARAMETERS,
    ),
    # Cerebras (inference-docs.cerebras.ai).
    UpstreamProfile(
        "cerebras",
        title="Cerebras",
        hosts=("api.cerebras.ai",),
        token_limit_field="max_completion_tokens",
        # A 400 each: frequency_penalty, presence_penalty, parallel_tool_calls, service_tier (hexdocs.pm/req_llm,
        # cerebras).
        penalties=False,
        parallel_tool_calls=False,
        # "property 'messages.2.assistant.reasoning_content' is unsupported"
        # (github.com/Kilo-Org/kilocode/issues/10375).
        replay_reasoning="off",
        # Text models.
        images=False,
        files="text",
        # The documented ones.
        parameters=STANDARD_PARAMETERS,
    ),
    UpstreamProfile("cloudflare", title="Cloudflare Workers AI", hosts=("api.cloudflare.com",)),
    # Alibaba Cloud Model Studio, compatible mode (help.aliyun.com/en/model-studio).
    UpstreamProfile(
        "dashscope",
        title="Alibaba Model Studio",
        hosts=("dashscope.aliyuncs.com", "dashscope-*.aliyuncs.com"),
        # json_schema is documented for its newest models alone.
        structured_output="json_object",
        files="text",
        # The documented ones.
        parameters=frozenset({"seed", "stop", "top_k", "repetition_penalty", "enable_thinking", "thinking_budget"}),
    ),
    # Databricks model serving.
    UpstreamProfile(
        "databricks",
        title="Databricks",
        hosts=("*.databricks.com", "*.azuredatabricks.net"),
        # Refused (posit-dev/chatlas, the Databricks provider); usage comes unasked, on every chunk.
        stream_usage=False,
        # Not among the documented fields; what it asks for is seen to here.
        parallel_tool_calls=False,
        files="text",
        # The documented ones.
        parameters=frozenset({"stop", "top_k"}),
    ),
    # DeepSeek's platform (api-docs.deepseek.com).
    UpstreamProfile(
        "deepseek",
        title="DeepSeek",
        hosts=("api.deepseek.com",),
        # "This response_format type is unavailable now" (github.com/llm-exe/llm-exe/issues/662).
        structured_output="json_object",
        # Documented (guides/thinking_mode): other names are mapped there, and the chat API has no `none`.
        effort_values=("minimal", "low", "medium", "high", "xhigh", "max"),
        # Documented (guides/thinking_mode): a tool-calling turn without its reasoning is a 400 later on;
        # deepseek/pydantic-test-deepseek-test-deepseek-deferred-capability-with-thinking-1 sends it.
        replay_reasoning="reasoning_content",
        # A 400, "unknown variant `image_url`, expected `text`":
        # deepseek/rig-deepseek-wire-shape-matrix-blocking-image-base64-part-reaches-the-wire.
        images=False,
        files="text",
        # The documented ones (api/create-chat-completion); `thinking` switches thinking (guides/thinking_mode).
        parameters=frozenset({"stop", "thinking"}),
    ),
    UpstreamProfile("fireworks", title="Fireworks", hosts=("api.fireworks.ai",), passed_fields=frozenset({"user"})),
    # Google's OpenAI-compatible endpoint (ai.google.dev/gemini-api/docs/openai). It reads strictly: what it does not
    # know is a 400, "Unknown name …: Cannot find field".
    UpstreamProfile(
        "gemini",
        title="Gemini (compatible endpoint)",
        hosts=("generativelanguage.googleapis.com",),
        # `Unknown name "frequency_penalty"`: github.com/versun/RSSBox/issues/132.
        penalties=False,
        # Not among the documented fields.
        logprobs=False,
        strict_tools=False,
        replay_reasoning="off",
        # Documented: `none` to `high`; `minimal` is refused by some models (the issue above).
        effort_values=("none", "low", "medium", "high"),
        # Gemini 3 refuses a call of its own that comes back without its thought signature (…/docs/thought-signatures).
        replay_signatures=True,
        # Documented: audio understanding.
        audio_input=True,
        # The only one of them that is documented.
        parameters=frozenset({"stop"}),
    ),
    UpstreamProfile(
        "github-copilot",
        title="GitHub Copilot",
        hosts=("api.githubcopilot.com", "*.githubcopilot.com"),
        # OpenAI's and others' models behind OpenAI's form.
        parameters=STANDARD_PARAMETERS,
    ),
    # Groq (console.groq.com/docs): strict about keys, and about what each model can do.
    UpstreamProfile(
        "groq",
        title="Groq",
        hosts=("api.groq.com",),
        token_limit_field="max_completion_tokens",
        # Documented: `logprobs` and `top_logprobs` are a 400 (docs/openai).
        logprobs=False,
        # Parts are text and images: groq/pydantic-test-multimodal-tool-returns-….
        files="text",
        # "property 'reasoning_content' is unsupported" for every model (github.com/janhq/jan/issues/8136), and
        # `reasoning` only on models that reason (github.com/vercel/ai/pull/8057).
        replay_reasoning="off",
        # Documented for gpt-oss and Qwen 3 alone (docs/reasoning); others refuse the field.
        reasoning_effort=False,
        passed_fields=frozenset({"user", "service_tier"}),
        # Documented (docs/openai): `logit_bias` is a 400; others are unknown keys.
        parameters=frozenset({"seed", "stop"}),
        by_model=(
            on_models(
                "openai/gpt-oss*",
                reasoning_effort=True,
                effort_values=("low", "medium", "high"),
                replay_reasoning="reasoning",
            ),
            # groq/pydantic-test-thinking-wire-contrac--soning-wire-contract-groq-qwen3-effort-setting.
            on_models("qwen/qwen3*", reasoning_effort=True, effort_values=("none", "default")),
        ),
    ),
    UpstreamProfile("huggingface", title="Hugging Face router", hosts=("router.huggingface.co",)),
    # llama.cpp's server (tools/server/README.md).
    UpstreamProfile(
        "llamacpp",
        title="llama.cpp",
        owned_by="llamacpp",
        server="llama.cpp",
        # Parts are text, image_url and input_audio ("unsupported content[].type" otherwise).
        files="text",
        audio_input=True,
        # llamacpp/fantasy-testopenaicompatiblecommon-llama-cpp-gpt-oss-tool-streaming-1 sends it.
        replay_reasoning="reasoning_content",
        # A tool by name is not kept: text, or a call of another tool (build 10434).
        named_tool_choice="required",
        # Without a schema beside it, `json_object` is not kept (build 10434).
        json_object_schema=True,
        # common/arg and tools/server/README.md: the fields of /completion count in chat requests too.
        parameters=STANDARD_PARAMETERS
        | {"top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "ignore_eos"}
        | {"chat_template_kwargs", "grammar", "json_schema"},
        # Renders the chat template and counts, without running the model.
        tokenizer="llamacpp",
    ),
    # LM Studio (lmstudio.ai/docs/developer/openai-compat).
    UpstreamProfile(
        "lmstudio",
        title="LM Studio",
        owned_by="organization_owner",
        # "Invalid tool_choice type: 'object'. Supported string values: none, auto, required":
        # github.com/lmstudio-ai/lmstudio-bug-tracker/issues/670.
        named_tool_choice="required",
        # "'response_format.type' must be 'json_schema' or 'text'": the same tracker, issue 189.
        json_object=False,
        files="text",
        # The documented ones.
        parameters=STANDARD_PARAMETERS | {"top_k", "repeat_penalty"},
    ),
    # Mistral's platform (docs.mistral.ai/api). Its nine-character call ids are in `profile.py`.
    UpstreamProfile(
        "mistral",
        title="Mistral",
        hosts=("api.mistral.ai", "codestral.mistral.ai"),
        call_ids="nine",
        # The API has none, and refuses unknown keys.
        logprobs=False,
        # Two values: mistral/ruby_llm-chat-with-extended-thinkin--hinking-signatures-between-turns-when-provided.
        effort_values=("none", "high"),
        # Unknown keys in messages are refused; its own form for reasoning is content parts.
        replay_reasoning="off",
        # Documents are named by URL there (`document_url`), there is no `file` part.
        files="text",
        # Unknown keys are a 422, "Extra inputs are not permitted"; the seed is called `random_seed` there.
        parameters=frozenset({"seed", "stop"}),
        seed_field="random_seed",
    ),
    UpstreamProfile("nvidia-nim", title="NVIDIA NIM", hosts=("integrate.api.nvidia.com",)),
    # Ollama (docs.ollama.com/api/openai-compatibility; source: openai/openai.go).
    UpstreamProfile(
        "ollama",
        title="Ollama",
        hosts=("ollama.com", "api.ollama.com"),
        owned_by="library",
        # "invalid reasoning value: … (must be "high", "medium", "low", or "none")".
        effort_values=("none", "low", "medium", "high"),
        # Its field: ollama/ruby_llm-chat-function-calling-olla--andle-multiple-tool-calls-in-a-single-response-1.
        replay_reasoning="reasoning",
        # Parts are text and image_url; anything else is "invalid message format".
        files="text",
        # The others are passed over there without a word (openai/openai.go, ChatCompletionRequest).
        parameters=frozenset({"seed", "stop"}),
    ),
    # OpenAI's own chat endpoint (developers.openai.com/api/reference: chat, create).
    UpstreamProfile(
        "openai",
        title="OpenAI",
        hosts=("api.openai.com", "*.api.openai.com"),
        # Its reasoning models refuse `max_tokens`.
        token_limit_field="max_completion_tokens",
        # Its reasoning models know this role; older ones take it as `system`.
        developer_role="developer",
        system_anywhere=True,
        verbosity=True,
        # Fields of its chat endpoint; elsewhere they are unknown keys, and strict servers refuse those.
        passed_fields=frozenset(
            {"service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "user"}
        ),
        # openai/logfire-otel-integrations-test-openai-test-chat-completions-with-audio-input.
        audio_input=True,
        # It gives no reasoning, and refuses unknown keys in messages.
        replay_reasoning="off",
        think="off",
        # Unknown keys are a 400.
        parameters=STANDARD_PARAMETERS,
    ),
    # OpenRouter (openrouter.ai/docs): many backends behind one endpoint, which leaves out what a backend cannot do.
    UpstreamProfile(
        "openrouter",
        title="OpenRouter",
        hosts=("openrouter.ai",),
        # Some backends give none, only the sentinel:
        # openrouter/llm-test-tools-streaming-test-tools-streaming-variant-a.
        end_without_finish="completed",
        verbosity=True,
        audio_input=True,
        passed_fields=frozenset({"user"}),
        # Its own spelling, both ways: openrouter/pydantic-test-openrouter-….
        replay_reasoning="reasoning",
        # Encrypted and signed reasoning must come back as it was:
        # openrouter/rig-openrouter-streaming-tools--ncrypted-reasoning-survives-into-the-next-turn-1.
        replay_details=True,
        # The documented ones (docs/api-reference/parameters).
        parameters=STANDARD_PARAMETERS | {"top_k", "min_p", "top_a", "repetition_penalty"},
    ),
    # Perplexity's Sonar (docs.perplexity.ai): it searches by itself.
    UpstreamProfile(
        "perplexity",
        title="Perplexity",
        hosts=("api.perplexity.ai",),
        # Not among the documented fields.
        logprobs=False,
        # Its reasoning is in the content, and nothing reads it back.
        replay_reasoning="off",
        # Its own part is `file_url`:
        # perplexity/ruby_llm-chat-document-models-perplexity-sonar-pro-understands-docx-documents.
        files="text",
        # The only one of them that is documented.
        parameters=frozenset({"top_k"}),
    ),
    # Parts are text, images, audio and video (python/sglang/srt/entrypoints/openai/protocol.py).
    UpstreamProfile(
        "sglang",
        title="SGLang",
        owned_by="sglang",
        server="sglang",
        files="text",
        # The same file.
        parameters=STANDARD_PARAMETERS
        | {"top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos"}
        | {"chat_template_kwargs", "regex", "ebnf"},
    ),
    # Snowflake Cortex.
    UpstreamProfile(
        "snowflake",
        title="Snowflake Cortex",
        hosts=("*.snowflakecomputing.com",),
        # Its thinking models end a stream with the sentinel alone:
        # snowflake/pydantic-test-snowflake-test-snowflake-thinking-streaming.
        end_without_finish="completed",
        # snowflake/pydantic-test-snowflake-test-snowflake-thinking-1 sends them back, and nothing else.
        replay_reasoning="off",
        replay_details=True,
        files="text",
        # The only one of them that is documented.
        parameters=frozenset({"stop"}),
    ),
    # Parts are text and images, `logit_bias` is there and unused (router/src/lib.rs).
    UpstreamProfile("tgi", title="Text Generation Inference", files="text", parameters=frozenset({"seed", "stop"})),
    UpstreamProfile("together", title="Together", hosts=("api.together.xyz", "api.together.ai")),
    UpstreamProfile("venice", title="Venice", hosts=("api.venice.ai",)),
    UpstreamProfile("vercel-gateway", title="Vercel AI Gateway", hosts=("ai-gateway.vercel.sh",)),
    # vLLM (vllm/entrypoints/openai/chat_completion/protocol.py, entrypoints/chat_utils.py,
    # entrypoints/serve/tokenize).
    UpstreamProfile(
        "vllm",
        title="vLLM",
        owned_by="vllm",
        server="vllm",
        # Parts are text, images, audio and video; there is no `file`.
        files="text",
        audio_input=True,
        # Renders the chat template and counts, without running the model.
        tokenizer="vllm",
        # protocol.py, ChatCompletionRequest; `guided_*` up to 0.11, `structured_outputs` since.
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
        # Documented (guides/reasoning): an error with the models that reason, which is all current ones.
        penalties=False,
        # Documented for grok-4.3 and later (guides/reasoning).
        effort_values=("none", "low", "medium", "high"),
        files="text",
        passed_fields=frozenset({"user"}),
        # The documented ones; `logit_bias` is documented as unsupported.
        parameters=frozenset({"seed", "stop"}),
        by_model=(
            # "Model grok-code-fast-1 does not support parameter reasoningEffort":
            # xai/req_llm-xai-grok-code-fast-1-reasoning-basic; the others: opencode-oci-provider 0.2.3, @ai-sdk/xai
            # 4.0.8.
            on_models("grok-code*", "grok-4", "grok-4-*", "grok-4.20*", reasoning_effort=False),
            # xai/fantasy-testopenaicompatiblethinking-xai-grok-3-mini-thinking-1; documented: low and high.
            on_models("grok-3-mini*", effort_values=("low", "high")),
        ),
    ),
    # Z.ai (docs.z.ai), also as Zhipu's open.bigmodel.cn.
    UpstreamProfile(
        "zai",
        title="Z.ai",
        hosts=("api.z.ai", "open.bigmodel.cn"),
        # Documented: text and json_object.
        structured_output="json_object",
        # Not among the documented fields.
        penalties=False,
        logprobs=False,
        # zai/fantasy-testopenaicompatiblethinking-zai-glm-4-7-flash-thinking-streaming-1 sends it.
        replay_reasoning="reasoning_content",
        files="text",
        # The documented ones; `thinking` switches thinking.
        parameters=frozenset({"stop", "thinking"}),
    ),
)
