"""The limits of clients, which both APIs apply to every request."""

from dataclasses import dataclass

from proxy.access.body_budget import Budget
from proxy.access.rate_limits import Limits


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """The rate limits of requests, and the byte budgets of their bodies and their answers."""

    requests: Limits
    bodies: Budget
    answers: Budget
