"""Azure OpenAI, and Azure AI Foundry, which serves other makers' models behind the same endpoint."""

from __future__ import annotations

from antiphon.translation.parameters import STANDARD_PARAMETERS
from antiphon.translation.profiles.families import on_models
from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
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
        # A 422, "Input should be a valid string", for a tool by name: azure/req_llm-azure-mai-ds-r1-tool-round-trip-1.
        on_models("*mai-ds-r1*", named_tool_choice="required"),
    ),
)
