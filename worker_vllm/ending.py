"""How a worker ends: its exit status, and the line to print if a person should read one."""

from dataclasses import dataclass

EX_OK, EX_FAILED, EX_USAGE, EX_UNAVAILABLE, EX_SOFTWARE, EX_CONFIG = 0, 1, 2, 69, 70, 78


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a worker."""

    code: int
    line: str = ""
