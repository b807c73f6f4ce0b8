"""The types in which a store returns the output of a job, and the rules that all stores share."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from proxy.jobs.model import Job


class LogPage(NamedTuple):
    """An outline of a job, a part of its outputs, and the cursor after them.

    `needed`: the bytes of the next output if the page ends because that does not fit; else 0.
    """

    job: Job
    outputs: Sequence[bytes]
    cursor: int
    needed: int = 0


class StoredResult(NamedTuple):
    """A job with all of its output, and the bytes of that.

    The job has an `output`, or `outputs` contains those of its log. Both are left out if they
    exceed the limit of the call.
    """

    job: Job
    outputs: Sequence[bytes]
    size: int


def not_appended(outputs: Sequence[bytes], end: int, start: int | None) -> Sequence[bytes]:
    """Return the outputs that a log of length `end` does not have yet (see `JobStore.append`)."""
    if start is None:
        return outputs
    if start > end:
        raise ValueError(f"outputs from {end} to {start} are missing")
    return outputs[end - start :]


def first_outputs(
    outputs: Iterable[tuple[bytes | None, int]], max_bytes: int
) -> tuple[list[bytes], int]:
    """Return the first outputs, up to `max_bytes` in all, and `LogPage.needed`.

    `outputs`: each output and its size. It may be None if it is larger than `max_bytes`.
    """
    found: list[bytes] = []
    free = max_bytes
    for output, size in outputs:
        if output is None or size > free:
            return found, size
        found.append(output)
        free -= size
    return found, 0
