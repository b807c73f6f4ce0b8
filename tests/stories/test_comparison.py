"""The programs of `make bench` answer every request, completely. Nothing is measured here."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.suite import ours
from benchmarks.suite.generator import compile_programs, figures, generate
from benchmarks.suite.loads import body, stream
from benchmarks.suite.mock import mock_upstream
from benchmarks.suite.model import Load, Opening, Rig, RunningSide, Unit

NEEDED = shutil.which("cc") and shutil.which("taskset") and len(os.sched_getaffinity(0)) > 1
REQUESTS = 24
EVENTS = 40


@asynccontextmanager
async def direct(rig: Rig) -> AsyncIterator[RunningSide]:
    """Yield the mock upstream itself."""
    async with mock_upstream(rig) as upstream:
        yield upstream


@pytest.mark.slow
@pytest.mark.skipif(not NEEDED, reason="needs a C compiler, taskset and two cores")
@pytest.mark.parametrize("opening", [ours.with_pump(2), direct], ids=["our proxy", "mock"])
async def test_every_answer_is_complete(opening: Opening, tmp_path: Path) -> None:
    rig = Rig(tmp_path, *compile_programs(tmp_path), tmp_path)
    async with opening(rig) as target:
        for request, events in (
            (body(max_tokens=64), 0),
            (stream(EVENTS, 1_000), EVENTS),
            (stream(EVENTS, 0), EVENTS),
            (stream(1, 1_000), 1),
        ):
            load = Load(connections=6, requests=REQUESTS, body=request, is_stream=events > 0)
            result = await generate(rig, target, load)
            assert result["ok"] == REQUESTS, result["errors"]
            assert result["events"] == REQUESTS * events
            assert result["transit"]["n"] == REQUESTS * events
            assert figures(result, target, Unit.REQUEST)["errors"] == 0
