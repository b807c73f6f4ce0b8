"""How long to wait before a worker that died is started again."""

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 60.0
HEALTHY_SECONDS = 60.0  # a worker that lived this long died of something new


def pause(deaths: int) -> float:
    """Seconds before the next start, after so many deaths in a row: 1, 2, 4 … 60."""
    return min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(deaths - 1, 16))


def deaths_in_row(before: int, lived: float) -> int:
    """The count after one more death of a worker that lived so many seconds."""
    return 1 if lived >= HEALTHY_SECONDS else before + 1
