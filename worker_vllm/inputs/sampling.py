"""Convert `sampling_params` of a native job into fields of an OpenAI request body. Pure.

The valid names come from the engine's route if the engine knows them, otherwise from the table in
this file. The engine validates the values: it rejects an invalid one with status 400 and names it.
"""

from difflib import get_close_matches
from typing import Any

SAMPLING_FIELDS = frozenset((
    "allowed_token_ids", "bad_words", "frequency_penalty", "ignore_eos",
    "include_stop_str_in_output", "length_penalty", "logit_bias", "logprobs", "max_tokens", "min_p",
    "min_tokens", "n", "presence_penalty", "prompt_logprobs", "repetition_penalty", "seed",
    "skip_special_tokens", "spaces_between_special_tokens", "stop", "stop_token_ids",
    "structured_outputs", "temperature", "thinking_token_budget", "top_k", "top_p",
    "truncate_prompt_tokens",
))  # fmt: skip
"""The fields that vLLM's SamplingParams and its request bodies have in common."""

# Fields of a request body that belong into `input` itself.
INPUT_FIELDS = frozenset({"messages", "model", "prompt", "stream", "stream_options"})
# Names in SamplingParams that differ from those in the request body.
RENAMED_FIELDS = {"extra_args": "vllm_xargs"}


class BadInputError(ValueError):
    """The job's input is invalid. The text names the field and is for the client."""


def sampling_fields(params: Any, known: frozenset[str], *, is_chat: bool) -> dict[str, Any]:
    """Return sampling parameters as fields of a request body.

    `known` are the fields of the route, or empty if the engine does not know them. Raises
    `BadInputError`.
    """
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise BadInputError("sampling_params: must be an object")
    allowed = (known or SAMPLING_FIELDS) - INPUT_FIELDS
    fields: dict[str, Any] = {}
    given: str
    for given, value in params.items():
        name = RENAMED_FIELDS.get(given) or given
        if given in INPUT_FIELDS:
            raise BadInputError(
                f"sampling_params.{given}: belongs into `input`, next to sampling_params"
            )
        if name not in allowed and not (known and given in RENAMED_FIELDS):
            raise BadInputError(f"sampling_params.{given[:100]}: unknown{_hint(given, allowed)}")
        if value is not None:
            fields[name] = value
    return _chat_logprobs(fields) if is_chat else fields


def _chat_logprobs(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert `logprobs`: a number in SamplingParams, a boolean and a number in a chat body."""
    count = fields.get("logprobs")
    if isinstance(count, int) and not isinstance(count, bool):
        return fields | {"logprobs": True, "top_logprobs": count}
    return fields


def _hint(given: str, allowed: frozenset[str]) -> str:
    # Former names of vLLM.
    if given.startswith("guided_"):
        return "; use structured_outputs instead"
    close = get_close_matches(given, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else ""
