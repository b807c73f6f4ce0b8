"""The end of a worker's process: its exit status, and an optional line for the operator."""

from dataclasses import dataclass

EX_OK = 0
EX_FAILED = 1
EX_USAGE = 2
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_CONFIG = 78


@dataclass(frozen=True, slots=True)
class Ended:
    """The exit status of a worker, and the line that `main` prints on stderr unless it is empty."""

    code: int
    line: str = ""
