"""Ids follow from the random bytes that they are made of."""

import re
from pathlib import Path
from random import Random
from secrets import token_bytes

from proxy.app import compose
from proxy.jobs.ids import Ids
from proxy.jobs.model import Owner
from proxy.service.durable import JobRequest
from proxy.settings import MEMORY, Settings
from proxy.system import System

UUID4 = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def drawn(ids: Ids) -> list[str]:
    """Some ids of each kind."""
    return [
        make()
        for make in (
            ids.interactive_job,
            lambda: ids.durable_job(is_sync=False),
            lambda: ids.durable_job(is_sync=True),
            ids.request,
        )
        for _ in range(3)
    ]


def test_the_same_seed_gives_the_same_ids() -> None:
    first = drawn(Ids(Random(1).randbytes))
    assert drawn(Ids(Random(1).randbytes)) == first
    assert len(set(first)) == len(first)
    assert not set(drawn(Ids(Random(2).randbytes))) & set(first)


def test_ids_have_the_form_that_clients_know() -> None:
    ids = Ids(token_bytes)
    assert re.fullmatch(f"{UUID4}-i1", ids.interactive_job())
    assert re.fullmatch(f"{UUID4}-u1", ids.durable_job(is_sync=False))
    assert re.fullmatch(f"sync-{UUID4}-u1", ids.durable_job(is_sync=True))
    assert re.fullmatch("[0-9a-f]{24}", ids.request())


async def test_a_proxy_makes_its_ids_of_the_random_bytes_that_it_is_given(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, store=MEMORY)
    parts = [compose(settings, System(random_bytes=Random(seed).randbytes)) for seed in (1, 1, 2)]
    first, again, other = [
        [
            (
                await one.durable.submit(
                    next(iter(one.endpoints)), Owner("alice"), JobRequest(b"1")
                )
            ).id
            for _ in range(3)
        ]
        for one in parts
    ]
    assert first == again
    assert len({*first, *other}) == 6
