"""Ids are a function of the random bytes that they are generated from."""

import re
from pathlib import Path
from random import Random
from secrets import token_bytes

from proxy.app import compose
from proxy.jobs.job_request import JobRequest
from proxy.jobs.model import Ids, Owner
from proxy.settings import MEMORY, Settings
from proxy.system import System

UUID4 = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def generate(ids: Ids) -> list[str]:
    """Return three ids of each kind."""
    generated: list[str] = []
    for _ in range(3):
        generated += [
            ids.interactive_job(),
            ids.durable_job(is_sync=False),
            ids.durable_job(is_sync=True),
            ids.request(),
            str(ids.run()),
        ]
    return generated


def test_the_same_seed_gives_the_same_ids() -> None:
    first = generate(Ids(Random(1).randbytes))
    assert generate(Ids(Random(1).randbytes)) == first
    assert len(set(first)) == len(first)
    assert not set(generate(Ids(Random(2).randbytes))) & set(first)


def test_ids_have_the_documented_form() -> None:
    ids = Ids(token_bytes)
    assert re.fullmatch(f"{UUID4}-i1", ids.interactive_job())
    assert re.fullmatch(f"{UUID4}-u1", ids.durable_job(is_sync=False))
    assert re.fullmatch(f"sync-{UUID4}-u1", ids.durable_job(is_sync=True))
    assert re.fullmatch("[0-9a-f]{24}", ids.request())


def test_the_number_of_a_run_is_positive_and_fits_into_a_column() -> None:
    assert Ids(lambda size: b"\xff" * size).run() == 2**63 - 1
    assert Ids(bytes).run() == 1


async def test_a_proxy_generates_ids_from_its_source_of_random_bytes(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, store=MEMORY)

    async def submit(seed: int) -> list[str]:
        parts = compose(settings, System(random_bytes=Random(seed).randbytes))
        endpoint = next(iter(parts.endpoints))
        jobs = [
            await parts.durable.submit(endpoint, Owner("alice"), JobRequest(b"1")) for _ in range(3)
        ]
        return [job.id for job in jobs]

    first = await submit(1)
    assert await submit(1) == first
    assert len({*first, *await submit(2)}) == 6
