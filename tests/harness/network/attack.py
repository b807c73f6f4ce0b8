"""Attacks: sending a malformed request, and detecting if it was served.

An attack also succeeds if it changes the order of the responses.
"""

import asyncio

import h11

from harness.network.malformed import Case
from harness.network.raw_connection import HeldError, Strict, marker, strict

# After an early response, a request has ten seconds to send its body.
TIMEOUT_SECONDS = 15.0
BAD_REQUEST = 400
# Responses to one attack: it has at most three requests for any parser, and one follows.
MOST_ANSWERS = 4


async def attack(url: str, case: Case, *, seconds: float = TIMEOUT_SECONDS) -> str:
    """Send a malformed request; return the failure, empty if it was rejected correctly.

    A request that has only one valid response follows on the same connection while that is open.
    """
    async with strict(url, seconds) as line:
        try:
            return await _refused(line, case)
        except HeldError:
            return "held: neither an answer nor an end"
        except h11.RemoteProtocolError as error:
            return f"no answer by the standard: {error}"


async def _refused(line: Strict, case: Case) -> str:
    await line.say(case.raw, ends=case.ends)
    answer = await line.answer()
    if answer is None:
        return ""
    if not 400 <= answer.status < 600 and not case.odd:
        return f"answered with {answer.status}"
    if answer.is_last:
        return "" if await line.answer() is None else "another answer behind the last one"
    following = marker()
    await line.say(following.raw)
    second = await line.answer()
    if second is None or (second.is_last and second.status == BAD_REQUEST):
        # The data after the first head is not a request.
        return ""
    if not following.fits(second):
        return f"the next request was answered with {second.status} {second.body[:100]!r}"
    return "" if case.stays or case.odd else f"open after {answer.status}"


async def attack_behind(url: str, case: Case, *, seconds: float = TIMEOUT_SECONDS) -> str:
    """Attack through a reverse proxy; return a description of the failure.

    It is empty if the reverse proxy has rejected the request or made it well-formed. The reverse
    proxy may take the bytes after the head for a request; its responses to its own client are not
    checked.
    """
    async with strict(url, seconds) as line:
        try:
            await line.say(case.raw, ends=case.ends)
            following = marker()
            for number in range(MOST_ANSWERS):
                answer = await line.answer()
                if answer is None or answer.is_last or (number and following.fits(answer)):
                    return ""
                if number == 0:
                    await line.say(following.raw)
        except HeldError:
            return "held: neither an answer nor an end"
        except h11.RemoteProtocolError:
            # HTTP/0.9, or HTTP/2, which was requested.
            return ""
        return "more answers than requests"


async def is_answered(url: str, seconds: float = 5.0) -> str:
    """Send plain requests on new connections; return an error unless each got its own response."""
    for _ in range(2):
        asked = marker()
        async with strict(url, seconds) as line:
            await line.say(asked.raw)
            answer = await line.answer()
        if not asked.fits(answer):
            shown = "nothing" if answer is None else f"{answer.status} {answer.body[:100]!r}"
            return f"another client was answered with {shown}"
    return ""


async def attack_all(url: str, cases: list[Case], at_once: int) -> dict[str, str]:
    """Run all attacks, `at_once` of them concurrently; return the failures by case."""
    gate = asyncio.Semaphore(at_once)

    async def one(case: Case) -> str:
        async with gate:
            return await attack(url, case)

    found = await asyncio.gather(*map(one, cases))
    return {case.name: wrong for case, wrong in zip(cases, found, strict=True) if wrong}


def listed(wrong: dict[str, str]) -> str:
    """Return the failures as text, one case per line."""
    return "\n".join([f"{len(wrong)} cases", *(f"{name}: {what}" for name, what in wrong.items())])
