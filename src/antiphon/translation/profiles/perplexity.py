"""Perplexity's Sonar (docs.perplexity.ai): it searches by itself."""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
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
)
