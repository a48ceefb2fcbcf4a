"""Vendors for which the defaults are right: a name and a host for `auto`, at most one flag.

Lives here: one line each. A vendor that needs more gets a file of its own.
"""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

__all__ = ["PROFILES"]

PROFILES = (
    UpstreamProfile("cloudflare", title="Cloudflare Workers AI", hosts=("api.cloudflare.com",)),
    UpstreamProfile("fireworks", title="Fireworks", hosts=("api.fireworks.ai",), passed_fields=frozenset({"user"})),
    UpstreamProfile("github-copilot", title="GitHub Copilot", hosts=("api.githubcopilot.com", "*.githubcopilot.com")),
    UpstreamProfile("huggingface", title="Hugging Face router", hosts=("router.huggingface.co",)),
    UpstreamProfile("nvidia-nim", title="NVIDIA NIM", hosts=("integrate.api.nvidia.com",)),
    # Parts are text, images, audio and video (python/sglang/srt/entrypoints/openai/protocol.py).
    UpstreamProfile("sglang", title="SGLang", files="text"),
    # Parts are text and images (router/src/lib.rs).
    UpstreamProfile("tgi", title="Text Generation Inference", files="text"),
    UpstreamProfile("together", title="Together", hosts=("api.together.xyz", "api.together.ai")),
    UpstreamProfile("venice", title="Venice", hosts=("api.venice.ai",)),
    UpstreamProfile("vercel-gateway", title="Vercel AI Gateway", hosts=("ai-gateway.vercel.sh",)),
    UpstreamProfile("watsonx", title="IBM watsonx", hosts=("*.ml.cloud.ibm.com",)),
)
