"""`sampling_params` of a native job, as fields of an OpenAI request body. Pure.

Which names there are, the engine's route says, where it can be asked; else the table here does. Values are the
engine's to judge: it refuses a bad one with 400 and names it.
"""

from difflib import get_close_matches
from typing import Any

SAMPLING = frozenset((
    "allowed_token_ids", "bad_words", "frequency_penalty", "ignore_eos", "include_stop_str_in_output",
    "length_penalty", "logit_bias", "logprobs", "max_tokens", "min_p", "min_tokens", "n", "presence_penalty",
    "prompt_logprobs", "repetition_penalty", "seed", "skip_special_tokens", "spaces_between_special_tokens", "stop",
    "stop_token_ids", "structured_outputs", "temperature", "thinking_token_budget", "top_k", "top_p",
    "truncate_prompt_tokens",
))  # fmt: skip
"""What vLLM's SamplingParams and its request bodies have in common."""

BESIDE = frozenset({"messages", "model", "prompt", "stream", "stream_options"})
RENAMED = {"extra_args": "vllm_xargs"}  # SamplingParams' name, and the request body's


class BadInputError(ValueError):
    """The job's input is wrong; the sentence names the field and is for the client."""


def sampling_fields(params: Any, known: frozenset[str], *, is_chat: bool) -> dict[str, Any]:
    """Sampling parameters as fields of a body; `known` are the fields that the route takes, if the engine can tell."""
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise BadInputError("sampling_params: must be an object")
    allowed = (known or SAMPLING) - BESIDE
    fields: dict[str, Any] = {}
    given: str
    for given, value in params.items():
        name = RENAMED.get(given) or given
        if given in BESIDE:
            raise BadInputError(
                f"sampling_params.{given}: belongs into `input`, beside sampling_params"
            )
        if name not in allowed and not (known and given in RENAMED):
            raise BadInputError(f"sampling_params.{given[:100]}: unknown{_hint(given, allowed)}")
        if value is not None:
            fields[name] = value
    return _chat_logprobs(fields) if is_chat else fields


def _chat_logprobs(fields: dict[str, Any]) -> dict[str, Any]:
    """SamplingParams counts logprobs; a chat body has a switch and a number."""
    count = fields.get("logprobs")
    if isinstance(count, int) and not isinstance(count, bool):
        return fields | {"logprobs": True, "top_logprobs": count}
    return fields


def _hint(given: str, allowed: frozenset[str]) -> str:
    if given.startswith("guided_"):  # vLLM's, once
        return "; it is called structured_outputs now"
    close = get_close_matches(given, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else ""
