"""Limits for a read of output: none."""

from proxy.service.job_view import ReadLimits


async def reserve(_: int) -> None:
    """Reserve nothing (see `job_view.Reserve`)."""


ALL = ReadLimits(2**40, True, reserve)
"""Reads whole results."""
