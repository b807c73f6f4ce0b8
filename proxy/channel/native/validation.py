"""What may stand in a worker's frames. They are checked as strictly as a client's body: no token makes a worker right.

What only one run says wrong ends that run. What is wrong with the worker itself ends its connection. A text for people
is cut, for it may come from anywhere.
"""

import re

import msgspec

from proxy.jobs.model import JobError
from proxy.wire import frames

MOST_MODELS = 1_000
MOST_HOLDS = 10_000  # more do not fit into one message
JOB_CHARACTERS = 128  # of an id; ours have 50
MODEL_CHARACTERS = 256
CARD_BYTES = 64 * 1024
ENGINE_CHARACTERS = 200
LOG_CHARACTERS = 500
MESSAGE_CHARACTERS = (
    64 * 1024
)  # of an error: it may be an engine's own, with all that it says of a request
FIRST_STATUS, LAST_STATUS = 200, 599  # what is below is no answer yet

_WORKER = re.compile(r"[A-Za-z0-9_-]{1,80}")
_MODEL = re.compile(rf"[^\x00-\x1f\x7f]{{1,{MODEL_CHARACTERS}}}")
_CONTENT_TYPE = re.compile(
    r"[ -~]{0,200}"
)  # it becomes a header: a line break would begin another one
_CODE = re.compile(r"[a-z0-9_]{1,64}")


class WorkerRefusedError(Exception):
    """The worker may not be here: a close code and a sentence."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def check_hello(hello: frames.Hello) -> None:
    """`WorkerRefusedError` if no worker says hello like this."""
    if hello.protocol != frames.PROTOCOL:
        raise WorkerRefusedError(
            4426, f"this proxy speaks protocol {frames.PROTOCOL}, the worker {hello.protocol}"
        )
    if not _WORKER.fullmatch(hello.worker):
        raise WorkerRefusedError(4400, "a worker's id is 1 to 80 letters, digits, _ and -")
    if len(hello.models) > MOST_MODELS:
        raise WorkerRefusedError(4400, f"a worker may announce {MOST_MODELS} models")
    if len(hello.holds) > MOST_HOLDS or any(len(hold.job) > JOB_CHARACTERS for hold in hello.holds):
        raise WorkerRefusedError(
            4400, f"a worker may hold {MOST_HOLDS} runs, of jobs with {JOB_CHARACTERS} characters"
        )
    for model in hello.models:
        _check_model(model)


def head_fault(head: frames.Head) -> str:
    """Why no answer begins like this; empty if one can."""
    if not FIRST_STATUS <= head.status <= LAST_STATUS:
        return f"The engine answered with the status {head.status}, which is none of an answer."
    if not _CONTENT_TYPE.fullmatch(head.content_type):
        return "The engine answered with a Content-Type that cannot stand in a header."
    return ""


def worker_error(end: frames.End, code: str, message: str) -> JobError:
    """The error of a run, with these for what it does not say."""
    given = end.code if _CODE.fullmatch(end.code) else ""
    return JobError(given or code, end.message[:MESSAGE_CHARACTERS] or message)


def _check_model(model: frames.Model) -> None:
    if not _MODEL.fullmatch(model.id):
        raise WorkerRefusedError(
            4400, f"a model's name has 1 to {MODEL_CHARACTERS} characters, none of them for control"
        )
    if len(model.card) > CARD_BYTES:
        raise WorkerRefusedError(4400, f"a model card may have {CARD_BYTES} bytes")
    try:
        model.card.decode()
        msgspec.json.decode(model.card, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WorkerRefusedError(
            4400, f"a model card is no JSON object: {str(error)[:80]}"
        ) from error


def public_card(model: frames.Model) -> bytes:
    """Return the card of a validated model, with the model's id as `root`; all else stays as it is.

    vLLM sets `root` to the path of the weights on the worker's machine, which clients must not see.
    """
    card = msgspec.json.decode(model.card, type=dict[str, msgspec.Raw])
    if "root" not in card:
        return model.card
    card["root"] = msgspec.Raw(msgspec.json.encode(model.id))
    return msgspec.json.encode(card)
