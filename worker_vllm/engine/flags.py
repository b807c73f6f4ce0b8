"""vLLM's flags from environment variables, by the names that the worker-vllm image gave them. Pure.

Which flags there are, and of what kind, is asked of vLLM's parser; no list of them is kept here. A variable is a flag's
name in capitals (`MAX_MODEL_LEN` is `--max-model-len`) or one of the image's own names.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from worker_vllm.engine.base import EngineError

CONFIG = "--config"
ALIASES = {  # each wins over its flag's own name
    "MODEL_NAME": "--model",
    "MODEL_REVISION": "--revision",
    "TOKENIZER_NAME": "--tokenizer",
    "OPENAI_SERVED_MODEL_NAME_OVERRIDE": "--served-model-name",
    "OPENAI_RESPONSE_ROLE": "--response-role",
    "CUSTOM_CHAT_TEMPLATE": "--chat-template",
    "VLLM_CONFIG_FILE": CONFIG,
}
# Names that mean something else on most machines, or have a variable of their own (MODEL_NAME, VLLM_API_KEY). The hub's
# library reads HF_TOKEN itself; as a flag it would only get into more places.
RESERVED = frozenset(
    {"API_KEY", "CONFIG", "HELP", "HF_TOKEN", "HOST", "LOG_LEVEL", "MODEL", "PORT"}
)
NO_SERVER = "it is about vLLM's own HTTP server, which a worker does not run"
OF_THE_SERVER = frozenset({
    *("ALLOW_CREDENTIALS", "ALLOWED_HEADERS", "ALLOWED_METHODS", "ALLOWED_ORIGINS", "API_SERVER_COUNT"),
    *("DATA_PARALLEL_MULTI_PORT_EXTERNAL_LB", "DATA_PARALLEL_SUPERVISOR_PORT", "DISABLE_ACCESS_LOG_FOR_ENDPOINTS"),
    *("DISABLE_FASTAPI_DOCS", "DISABLE_UVICORN_ACCESS_LOG", "DP_SUPERVISOR_PROBE_FAILURE_THRESHOLD"),
    *("DP_SUPERVISOR_PROBE_INTERVAL_S", "DP_SUPERVISOR_PROBE_TIMEOUT_S", "ENABLE_OFFLINE_DOCS"),
    *("ENABLE_REQUEST_ID_HEADERS", "ENABLE_SSL_REFRESH", "GRPC", "GRPC_PORT", "H11_MAX_HEADER_COUNT"),
    *("H11_MAX_INCOMPLETE_EVENT_SIZE", "HEADLESS", "ROOT_PATH", "SSL_CA_CERTS", "SSL_CERTFILE", "SSL_CERT_REQS"),
    *("SSL_CIPHERS", "SSL_KEYFILE", "UDS", "UVICORN_LOG_LEVEL"),
})  # fmt: skip
GONE = "vLLM has no such flag any more"
REMOVED = {  # what vLLM once had; where a parser still has it, it is a flag like any other
    "CALCULATE_KV_SCALES": "",
    "CUDA_GRAPH_SIZES": "COMPILATION_CONFIG, cudagraph_capture_sizes",
    "DISABLE_FRONTEND_MULTIPROCESSING": "",
    "DISABLE_LOG_REQUESTS": "ENABLE_LOG_REQUESTS",
    "DISABLE_MM_PREPROCESSOR_CACHE": "MM_PROCESSOR_CACHE_GB",
    "ENABLE_LORA_BIAS": "",
    "ENABLE_MULTIMODAL_ENCODER_DATA_PARALLEL": "MM_ENCODER_TP_MODE",
    "EPLB_LOG_BALANCEDNESS": "EPLB_CONFIG",
    "EPLB_STEP_INTERVAL": "EPLB_CONFIG",
    "EPLB_WINDOW_SIZE": "EPLB_CONFIG",
    "GUIDED_DECODING_BACKEND": "STRUCTURED_OUTPUTS_CONFIG",
    "GUIDED_DECODING_DISABLE_ADDITIONAL_PROPERTIES": "STRUCTURED_OUTPUTS_CONFIG",
    "GUIDED_DECODING_DISABLE_ANY_WHITESPACE": "STRUCTURED_OUTPUTS_CONFIG",
    "GUIDED_DECODING_DISABLE_FALLBACK": "STRUCTURED_OUTPUTS_CONFIG",
    "LOGITS_PROCESSOR_PATTERN": "LOGITS_PROCESSORS",
    "LORA_EXTRA_VOCAB_SIZE": "",
    "MAX_LONG_PARTIAL_PREFILLS": "",
    "MAX_NUM_PARTIAL_PREFILLS": "",
    "MAX_SEQ_LEN_TO_CAPTURE": "COMPILATION_CONFIG, cudagraph_capture_sizes",
    "NUM_LOOKAHEAD_SLOTS": "SPECULATIVE_CONFIG",
    "NUM_REDUNDANT_EXPERTS": "EPLB_CONFIG",
    "OVERRIDE_ATTENTION_DTYPE": "",
    "OVERRIDE_POOLER_CONFIG": "POOLER_CONFIG",
    "ROPE_SCALING": "HF_OVERRIDES, rope_scaling",
    "ROPE_THETA": "HF_OVERRIDES, rope_theta",
    "SPECULATIVE_MODEL": "SPECULATIVE_CONFIG",
    "SWAP_SPACE": "",
    "TASK": "RUNNER and CONVERT",
}
ZERO_IS_UNSET = frozenset(
    {"MAX_NUM_BATCHED_TOKENS"}
)  # a common template's default, which vLLM refuses
TRUE, FALSE = frozenset({"1", "on", "true", "yes"}), frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag as words of a command line, and the variable that it comes from."""

    variable: str
    words: tuple[str, ...]


def variables_of(actions: Iterable[argparse.Action]) -> dict[str, tuple[str, argparse.Action]]:
    """Every variable that is a flag of this parser, the stronger names last."""
    options = {
        option: action
        for action in actions
        for option in action.option_strings
        if option.startswith("--")
    }
    named = {
        option.removeprefix("--").replace("-", "_").upper(): (option, action)
        for option, action in options.items()
        if f"--{option.removeprefix('--no-')}" not in action.option_strings
    }
    own = {
        variable: found
        for variable, found in named.items()
        if variable not in RESERVED | OF_THE_SERVER
    }
    return own | {
        variable: (option, options[option])
        for variable, option in ALIASES.items()
        if option in options
    }


def flags_from(variables: Mapping[str, str], actions: Iterable[argparse.Action]) -> list[Flag]:
    """The flags that the variables set. An empty variable sets nothing."""
    flags: dict[str, Flag] = {}
    for variable, (option, action) in variables_of(actions).items():
        value = variables.get(variable, "").strip()
        if value and not (value == "0" and variable in ZERO_IS_UNSET):
            flags[action.dest] = Flag(variable, _words(variable, option, action, value))
    return [flag for flag in flags.values() if flag.words]


def ignored(variables: Mapping[str, str], actions: Iterable[argparse.Action]) -> dict[str, str]:
    """The variables that somebody may count on and that change nothing, and why."""
    known = variables_of(actions)
    reasons = {
        name: f"{GONE}{use and f': see {use}'}"
        for name, use in REMOVED.items()
        if name not in known
    }
    reasons |= dict.fromkeys(sorted(OF_THE_SERVER), NO_SERVER)
    return {name: reason for name, reason in reasons.items() if variables.get(name, "").strip()}


def _words(variable: str, option: str, action: argparse.Action, value: str) -> tuple[str, ...]:
    opposite = option.replace("--", "--no-", 1)
    if opposite in action.option_strings:
        return (option,) if _truth(variable, value) else (opposite,)
    if action.nargs == 0:
        return (option,) if _truth(variable, value) else ()
    if action.nargs not in {None, "?"}:
        return (option, *_items(value))
    # One word, for the value may begin with a dash. But vLLM opens a configuration file only after the bare word.
    return (option, value) if option == CONFIG else (f"{option}={value}",)


def _truth(variable: str, value: str) -> bool:
    if value.lower() not in TRUE | FALSE:
        raise EngineError(f"{variable} is wrong: {value!r} is neither true nor false")
    return value.lower() in TRUE


def _items(value: str) -> list[str]:
    """The values in a JSON array or between commas. An object is one value, commas or not."""
    if value.startswith("{"):
        return [value]
    try:
        found = json.loads(value) if value.startswith("[") else value.split(",")
    except ValueError:
        found = value.split(",")
    words = [item.strip() if isinstance(item, str) else json.dumps(item) for item in found]
    return [word for word in words if word]
