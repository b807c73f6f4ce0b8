"""A reading of output without a limit of bytes."""

from proxy.service.job_view import Reading


async def pay(_: int) -> None:
    """Reserve nothing (see `job_view.Pay`)."""


ALL = Reading(2**40, True, pay)
"""Reads whole results."""
