"""The receiver of a run's output that records what it is given."""

from typing import Any

from proxy.jobs.model import Head
from proxy.jobs.policy import RunEnd
from proxy.service.ports import SinkVerdict, WorkerPort


class RecordingSink:
    """`Sink` that records each call; `verdict` is its verdict on every piece of output."""

    def __init__(
        self, verdict: SinkVerdict = SinkVerdict.ACCEPTED, *, takes_values: bool = True
    ) -> None:
        self.verdict = verdict
        self.takes_values = takes_values
        self.calls: list[tuple[Any, ...]] = []

    def begin(self, attempt: int, port: WorkerPort) -> None:
        self.calls.append(("begin", attempt, port))

    def reattach(self, attempt: int, port: WorkerPort) -> SinkVerdict:
        return self._take("reattach", attempt, port)

    def head(self, attempt: int, head: Head) -> SinkVerdict:
        return self._take("head", attempt, head)

    def chunk(self, attempt: int, data: bytes, *, more: bool) -> SinkVerdict:
        return self._take("chunk", attempt, data, more)

    def output(self, attempt: int, value: bytes, metrics: bytes, *, whole: bool) -> SinkVerdict:
        return self._take("output", attempt, value, metrics, whole)

    def end(self, attempt: int, end: RunEnd) -> None:
        self.calls.append(("end", attempt, end))

    def drop(self, attempt: int) -> None:
        self.calls.append(("drop", attempt))

    def _take(self, *call: Any) -> SinkVerdict:
        self.calls.append(call)
        return self.verdict
