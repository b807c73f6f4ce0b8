"""The exponential back-off before the restart of a worker that has died."""

FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 60.0
# After this uptime, a death is not related to the deaths before it.
HEALTHY_UPTIME_SECONDS = 60.0


def pause(deaths: int) -> float:
    """Return the seconds to wait after the given number of deaths in a row: 1, 2, 4 … 60."""
    return min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(deaths - 1, 16))


def deaths_in_row(before: int, uptime: float) -> int:
    """Return the deaths in a row, including that of a worker with this uptime in seconds."""
    return 1 if uptime >= HEALTHY_UPTIME_SECONDS else before + 1
