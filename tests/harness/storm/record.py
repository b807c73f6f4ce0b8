"""The record of a storm: what each client asked for and received, and the checks of it.

The engine answers the prompt `x` with the tokens `x 0 x 1 ...`. Every request has a prompt of its
own, so a wrong, repeated or missing token of any run is visible in the text.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
# The reasons for which a job may fail in a storm: its workers were killed.
LOST = re.compile(r"lost|did not reconnect")


@dataclass(slots=True)
class Asked:
    """A request, and everything that its client has received.

    `job`: its id, once it was acknowledged. `texts`: all texts that should be the answer, or its
    beginning if `is_whole` is False. `ends`: the final answers, such as `COMPLETED`; a client of an
    OpenAI call that was interrupted records `broken` or an error code. `consumes`: the client reads
    in a way in which elements may be lost with a response. `shown`: the job after its end, if it is
    forgotten before the storm is over.
    """

    prompt: str
    tokens: int
    kind: str
    job: str = ""
    text: str = ""
    is_whole: bool = False
    consumes: bool = False
    ends: list[str] = field(default_factory=list)
    webhooks: list[str] = field(default_factory=list)
    shown: "Ended | None" = None

    @property
    def answer(self) -> str:
        """The whole correct answer."""
        return "".join(f"{self.prompt} {number} " for number in range(self.tokens))


@dataclass(frozen=True, slots=True)
class Ended:
    """A job as the proxy shows it after the storm."""

    status: str
    text: str = ""
    error: str = ""


def findings(requests: Iterable[Asked], jobs: dict[str, Ended]) -> list[str]:
    """Return a line for each violation of a promise; `jobs`: by id, those that still exist."""
    found = []
    for asked in requests:
        found += [f"{asked.kind} {asked.prompt}: {fault}" for fault in _faults(asked, jobs)]
    return found


def _faults(asked: Asked, jobs: dict[str, Ended]) -> Iterable[str]:
    if not asked.ends:
        yield "no final answer"
    if len(set(asked.ends)) > 1 or len(set(asked.webhooks)) > 1:
        yield f"finished twice: {asked.ends} {asked.webhooks}"
    if asked.job:
        yield from _job_faults(asked, jobs.get(asked.job))
    yield from _text_faults(asked)


def _job_faults(asked: Asked, ended: Ended | None) -> Iterable[str]:
    if ended is None:
        yield "acknowledged and lost"
        return
    if ended.status not in FINAL:
        yield f"not finished: {ended.status}"
    if asked.ends and asked.ends[-1] != ended.status:
        yield f"finished twice: {asked.ends[-1]}, then {ended.status}"
    if any(status != ended.status for status in asked.webhooks):
        yield f"its webhook says {asked.webhooks}, and its status is {ended.status}"
    if ended.status == "COMPLETED" and ended.text != asked.answer:
        yield f"wrong output: {_difference(ended.text, asked.answer)}"
    if ended.status == "FAILED" and not LOST.search(ended.error):
        yield f"failed: {ended.error}"
    if ended.status in ("CANCELLED", "TIMED_OUT"):
        yield f"ended as {ended.status} without a reason"


def _text_faults(asked: Asked) -> Iterable[str]:
    if asked.consumes:
        if not _is_ascending(asked):
            yield f"repeated text: {asked.text[-200:]}"
    elif asked.is_whole and asked.text != asked.answer:
        yield f"wrong text: {_difference(asked.text, asked.answer)}"
    elif not asked.answer.startswith(asked.text):
        yield f"wrong text before a break: {_difference(asked.text, asked.answer)}"


def _is_ascending(asked: Asked) -> bool:
    words = asked.text.split()
    numbers = [int(word) for word in words[1::2]]
    is_own = all(word == asked.prompt for word in words[::2])
    return is_own and all(first < second for first, second in itertools.pairwise(numbers))


def _difference(text: str, answer: str) -> str:
    """Return the place at which a text differs from the answer."""
    pairs = zip(text, answer, strict=False)
    at = next((at for at, (one, other) in enumerate(pairs) if one != other), len(text))
    at = min(at, len(answer))
    return f"at {at} of {len(answer)}: {text[max(0, at - 20) : at + 40]!r}"
