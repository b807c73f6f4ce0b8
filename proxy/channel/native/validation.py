"""Validation of the `Hello` of a worker, as strict as that of client requests.

Authenticated workers are not trusted to send valid data. An invalid value that concerns the worker
itself closes its connection; `connection` ends a run for one that concerns the run. Human-readable
texts are truncated, since their origin is unknown.
"""

import re

import msgspec

from proxy.wire import frames

HELLO_MAX_MODELS = 1_000
# The largest number that fits into one message.
HELLO_MAX_HOLDS = 10_000
# The maximum length of a job id. The ids of this proxy have 50 characters.
JOB_CHARACTERS = 128
MODEL_CHARACTERS = 256
CARD_BYTES = 64 * 1024
# vLLM with all its development routes has about 60.
MODEL_MAX_ROUTES = 200
ROUTE_CHARACTERS = 128
ENGINE_CHARACTERS = 200
LOG_CHARACTERS = 500

# The stages of a starting worker in words for clients, by the first word of its `Log` text. That
# text can contain a path or an address of its machine.
STAGES = {
    "importing": "importing vLLM",
    "loading": "loading the model",
    "warming": "warming up",
    "waiting": "waiting for its upstream server",
}
OTHER_STAGE = "starting the engine"

_WORKER = re.compile(frames.ID_PATTERN)
_INSTANCE = re.compile(r"[A-Za-z0-9_-]{0,80}")
_MODEL = re.compile(rf"[^\x00-\x1f\x7f]{{1,{MODEL_CHARACTERS}}}")


class WorkerRefusedError(Exception):
    """The worker was refused, with a close code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def check_hello(hello: frames.Hello) -> None:
    """Validate a hello. Raises `WorkerRefusedError`."""
    if hello.protocol != frames.PROTOCOL:
        raise WorkerRefusedError(
            4426,
            f"this proxy uses protocol {frames.PROTOCOL}, the worker uses {hello.protocol};"
            " update the older of the two",
        )
    if not _WORKER.fullmatch(hello.worker):
        raise WorkerRefusedError(4400, "a worker's id must be 1 to 80 letters, digits, _ or -")
    if not _INSTANCE.fullmatch(hello.instance):
        raise WorkerRefusedError(
            4400, "a worker's instance must be at most 80 letters, digits, _ or -"
        )
    if len(hello.models) > HELLO_MAX_MODELS:
        raise WorkerRefusedError(4400, f"a worker may announce at most {HELLO_MAX_MODELS} models")
    if len(hello.holds) > HELLO_MAX_HOLDS or any(
        len(hold.job) > JOB_CHARACTERS for hold in hello.holds
    ):
        raise WorkerRefusedError(
            4400,
            f"a worker may hold at most {HELLO_MAX_HOLDS} runs, "
            f"with job ids of at most {JOB_CHARACTERS} characters",
        )
    for model in hello.models:
        check_model(model)


def check_model(model: frames.Model) -> None:
    """Validate the name and the card of a model. Raises `WorkerRefusedError`."""
    if not _MODEL.fullmatch(model.id):
        raise WorkerRefusedError(
            4400,
            f"a model's name must have 1 to {MODEL_CHARACTERS} characters "
            "and no control characters",
        )
    if len(model.routes) > MODEL_MAX_ROUTES or any(
        len(route) > ROUTE_CHARACTERS for route in model.routes
    ):
        raise WorkerRefusedError(
            4400,
            f"a model may have at most {MODEL_MAX_ROUTES} routes of at most {ROUTE_CHARACTERS}"
            " characters",
        )
    if len(model.card) > CARD_BYTES:
        raise WorkerRefusedError(4400, f"a model card may have at most {CARD_BYTES} bytes")
    try:
        model.card.decode()
        msgspec.json.decode(model.card, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WorkerRefusedError(
            4400, f"a model card must be a JSON object: {str(error)[:80]}"
        ) from error


def public_card(model: frames.Model) -> bytes:
    """Return the card of a validated model with the model's id as `root`, otherwise unchanged.

    vLLM sets `root` to the path of the weights on the worker's machine, which clients must not see.
    """
    card = msgspec.json.decode(model.card, type=dict[str, msgspec.Raw])
    if "root" not in card:
        return model.card
    card["root"] = msgspec.Raw(msgspec.json.encode(model.id))
    return msgspec.json.encode(card)


def public_stage(text: str) -> str:
    """Return the stage of a starting worker, from its `Log` frame, as clients may read it."""
    return STAGES.get(text.partition(" ")[0], OTHER_STAGE)
