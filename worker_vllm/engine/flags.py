"""vLLM's flags from environment variables, with the names of the worker-vllm image. Pure.

The flags and their kinds come from vLLM's parser; there is not a list of them here. A variable is a
flag's name in capitals (`MAX_MODEL_LEN` is `--max-model-len`) or one of the image's own names.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from worker_vllm.engine.base import EngineError

CONFIG_FLAG = "--config"
# The image's own names. Each overrides the variable that is named like its flag.
ALIASES = {
    "MODEL_NAME": "--model",
    "MODEL_REVISION": "--revision",
    "TOKENIZER_NAME": "--tokenizer",
    "OPENAI_SERVED_MODEL_NAME_OVERRIDE": "--served-model-name",
    "OPENAI_RESPONSE_ROLE": "--response-role",
    "CUSTOM_CHAT_TEMPLATE": "--chat-template",
    "VLLM_CONFIG_FILE": CONFIG_FLAG,
}
# Names that mean something else on most machines, or that have a variable of their own (MODEL_NAME,
# VLLM_API_KEY). The hub's library reads HF_TOKEN itself; as a flag it would only be copied to more
# places.
RESERVED_NAMES = frozenset(
    {"API_KEY", "CONFIG", "HELP", "HF_TOKEN", "HOST", "LOG_LEVEL", "MODEL", "PORT"}
)
SERVER_FLAG_REASON = "it configures vLLM's own HTTP server, which a worker does not run"
SERVER_FLAG_NAMES = frozenset({
    "ALLOW_CREDENTIALS", "ALLOWED_HEADERS", "ALLOWED_METHODS", "ALLOWED_ORIGINS",
    "API_SERVER_COUNT", "DATA_PARALLEL_MULTI_PORT_EXTERNAL_LB", "DATA_PARALLEL_SUPERVISOR_PORT",
    "DISABLE_ACCESS_LOG_FOR_ENDPOINTS", "DISABLE_FASTAPI_DOCS", "DISABLE_UVICORN_ACCESS_LOG",
    "DP_SUPERVISOR_PROBE_FAILURE_THRESHOLD", "DP_SUPERVISOR_PROBE_INTERVAL_S",
    "DP_SUPERVISOR_PROBE_TIMEOUT_S", "ENABLE_OFFLINE_DOCS", "ENABLE_REQUEST_ID_HEADERS",
    "ENABLE_SSL_REFRESH", "GRPC", "GRPC_PORT", "H11_MAX_HEADER_COUNT",
    "H11_MAX_INCOMPLETE_EVENT_SIZE", "HEADLESS", "ROOT_PATH", "SSL_CA_CERTS", "SSL_CERTFILE",
    "SSL_CERT_REQS", "SSL_CIPHERS", "SSL_KEYFILE", "UDS", "UVICORN_LOG_LEVEL",
})  # fmt: skip
REMOVED_FLAG_REASON = "vLLM has removed this flag"
# Former flags of vLLM and their replacements. If the installed vLLM still has one of them, it is an
# ordinary flag.
REMOVED_FLAGS = {
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
# A common template sets these to 0 by default, which vLLM rejects.
ZERO_IS_UNSET = frozenset({"MAX_NUM_BATCHED_TOKENS"})
TRUE_WORDS = frozenset({"1", "on", "true", "yes"})
FALSE_WORDS = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Flag:
    """The command-line words of a flag, and the variable that sets it."""

    variable: str
    words: tuple[str, ...]


def variables_of(actions: Iterable[argparse.Action]) -> dict[str, tuple[str, argparse.Action]]:
    """Return the option and the action of every variable that sets a flag of this parser.

    Names with higher precedence come last.
    """
    options: dict[str, argparse.Action] = {}
    for action in actions:
        long = [option for option in action.option_strings if option.startswith("--")]
        options |= dict.fromkeys(long, action)
    named = {
        option.removeprefix("--").replace("-", "_").upper(): (option, action)
        for option, action in options.items()
        if f"--{option.removeprefix('--no-')}" not in action.option_strings
    }
    own = {
        variable: found
        for variable, found in named.items()
        if variable not in RESERVED_NAMES | SERVER_FLAG_NAMES
    }
    return own | {
        variable: (option, options[option])
        for variable, option in ALIASES.items()
        if option in options
    }


def flags_from(variables: Mapping[str, str], actions: Iterable[argparse.Action]) -> list[Flag]:
    """Return the flags that the variables set. An empty variable has no effect."""
    flags: dict[str, Flag] = {}
    for variable, (option, action) in variables_of(actions).items():
        value = variables.get(variable, "").strip()
        if value and not (value == "0" and variable in ZERO_IS_UNSET):
            flags[action.dest] = Flag(variable, _words(variable, option, action, value))
    return [flag for flag in flags.values() if flag.words]


def ignored(variables: Mapping[str, str], actions: Iterable[argparse.Action]) -> dict[str, str]:
    """Return the variables that have no effect although a user may expect one, with the reason."""
    known = variables_of(actions)
    reasons: dict[str, str] = {}
    for name, replacement in REMOVED_FLAGS.items():
        if name not in known:
            hint = f"; use {replacement}" if replacement else ""
            reasons[name] = REMOVED_FLAG_REASON + hint
    reasons |= dict.fromkeys(sorted(SERVER_FLAG_NAMES), SERVER_FLAG_REASON)
    return {name: reason for name, reason in reasons.items() if variables.get(name, "").strip()}


def _words(variable: str, option: str, action: argparse.Action, value: str) -> tuple[str, ...]:
    opposite = option.replace("--", "--no-", 1)
    if opposite in action.option_strings:
        return (option,) if _is_true(variable, value) else (opposite,)
    if action.nargs == 0:
        return (option,) if _is_true(variable, value) else ()
    if action.nargs not in {None, "?"}:
        return (option, *_items(value))
    if option == CONFIG_FLAG:
        # vLLM opens a configuration file only if the flag is a word of its own.
        return (option, value)
    # One word, because the value may begin with a dash.
    return (f"{option}={value}",)


def _is_true(variable: str, value: str) -> bool:
    if value.lower() not in TRUE_WORDS | FALSE_WORDS:
        raise EngineError(f"{variable} is wrong: {value!r} is neither true nor false")
    return value.lower() in TRUE_WORDS


def _items(value: str) -> list[str]:
    """Return the values of a JSON array, or of a list with commas. An object is one value."""
    if value.startswith("{"):
        return [value]
    try:
        found = json.loads(value) if value.startswith("[") else value.split(",")
    except ValueError:
        found = value.split(",")
    words = [item.strip() if isinstance(item, str) else json.dumps(item) for item in found]
    return [word for word in words if word]
