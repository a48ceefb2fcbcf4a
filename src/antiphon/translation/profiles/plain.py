"""Vendors for which the defaults are right: a name and a host for `auto`, few flags.

Lives here: one line each. A vendor that needs more gets a file of its own.
"""

from __future__ import annotations

from antiphon.translation.parameters import STANDARD_PARAMETERS
from antiphon.translation.profiles.profile import UpstreamProfile

PROFILES = (
    UpstreamProfile("cloudflare", title="Cloudflare Workers AI", hosts=("api.cloudflare.com",)),
    UpstreamProfile("fireworks", title="Fireworks", hosts=("api.fireworks.ai",), passed_fields=frozenset({"user"})),
    UpstreamProfile(
        "github-copilot",
        title="GitHub Copilot",
        hosts=("api.githubcopilot.com", "*.githubcopilot.com"),
        # OpenAI's and others' models behind OpenAI's form.
        parameters=STANDARD_PARAMETERS,
    ),
    UpstreamProfile("huggingface", title="Hugging Face router", hosts=("router.huggingface.co",)),
    UpstreamProfile("nvidia-nim", title="NVIDIA NIM", hosts=("integrate.api.nvidia.com",)),
    # Parts are text, images, audio and video (python/sglang/srt/entrypoints/openai/protocol.py).
    UpstreamProfile(
        "sglang",
        title="SGLang",
        files="text",
        # The same file.
        parameters=STANDARD_PARAMETERS
        | {"top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos"}
        | {"chat_template_kwargs", "regex", "ebnf"},
    ),
    # Parts are text and images, `logit_bias` is there and unused (router/src/lib.rs).
    UpstreamProfile("tgi", title="Text Generation Inference", files="text", parameters=frozenset({"seed", "stop"})),
    UpstreamProfile("together", title="Together", hosts=("api.together.xyz", "api.together.ai")),
    UpstreamProfile("venice", title="Venice", hosts=("api.venice.ai",)),
    UpstreamProfile("vercel-gateway", title="Vercel AI Gateway", hosts=("ai-gateway.vercel.sh",)),
    UpstreamProfile("watsonx", title="IBM watsonx", hosts=("*.ml.cloud.ibm.com",)),
)
