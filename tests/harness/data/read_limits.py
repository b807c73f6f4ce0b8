"""Limits for a read of output: none."""

from proxy.service.job_view import ReadLimits


async def pay(_: int) -> None:
    """Reserve nothing (see `job_view.Pay`)."""


ALL = ReadLimits(2**40, True, pay)
"""Reads whole results."""
