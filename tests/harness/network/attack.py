"""Sending a malformed request, and finding out whether it was served or has upset the order of the answers."""

import asyncio

import h11

from harness.network.malformed import Case
from harness.network.raw_connection import HeldError, Strict, marker, strict

PATIENCE = 15.0  # a request that was answered early has ten seconds to get rid of its body
BAD_REQUEST = 400
MOST_ANSWERS = (
    4  # to one attack: there are at most three requests in it, in anybody's eyes, and one follows
)


async def attack(url: str, case: Case, *, patience: float = PATIENCE) -> str:
    """What went wrong; nothing when it was refused as it should be.

    A request that can have only one answer follows on the same connection, while that is open.
    """
    async with strict(url, patience) as line:
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
        return ""  # what was behind the first head is none
    if not following.fits(second):
        return f"the next request was answered with {second.status} {second.body[:100]!r}"
    return "" if case.stays or case.odd else f"open after {answer.status}"


async def attack_behind(url: str, case: Case, *, patience: float = PATIENCE) -> str:
    """What went wrong; nothing when the server in front has refused it, or made of it what is none any more.

    What is behind the head may be a request in its eyes, and what is answered to its own client is between those two.
    """
    async with strict(url, patience) as line:
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
            return ""  # HTTP/0.9, or HTTP/2, which it was asked for
        return "more answers than requests"


async def is_answered(url: str, patience: float = 5.0) -> str:
    """What went wrong with plain requests on connections of their own; nothing when each got its own answer."""
    for _ in range(2):
        asked = marker()
        async with strict(url, patience) as line:
            await line.say(asked.raw)
            answer = await line.answer()
        if not asked.fits(answer):
            told = "nothing" if answer is None else f"{answer.status} {answer.body[:100]!r}"
            return f"another client was answered with {told}"
    return ""


async def attack_all(url: str, cases: list[Case], at_once: int) -> dict[str, str]:
    """What went wrong, by case; so many at once."""
    gate = asyncio.Semaphore(at_once)

    async def one(case: Case) -> str:
        async with gate:
            return await attack(url, case)

    found = await asyncio.gather(*map(one, cases))
    return {case.name: wrong for case, wrong in zip(cases, found, strict=True) if wrong}


def listed(wrong: dict[str, str]) -> str:
    """What went wrong, a case a line."""
    return "\n".join([f"{len(wrong)} cases", *(f"{name}: {what}" for name, what in wrong.items())])
