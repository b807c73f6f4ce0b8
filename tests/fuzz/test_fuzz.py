"""Fuzzing of the parsers of untrusted input: none crashes, and accepted input is valid."""

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest
from harness.load.figures import tell

from proxy.wire.frames import (
    Chunk,
    Credit,
    End,
    Head,
    Heartbeat,
    Hello,
    Hold,
    Log,
    Model,
    Output,
    encode,
)

pytestmark = pytest.mark.slow

pytest.importorskip(
    "atheris", reason="needs atheris: pip install atheris (Linux x86_64, Python 3.11 to 3.13)"
)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHORT_FORM_SECONDS = 5
LONG_FORM_RUNS = 1_000_000
LONG_FORM_MAX_SECONDS = 1_140

SEEDS = {
    "decoder": [
        encode(
            [
                Hello(1, "w", "e", [Model("m", b"{}")], [Hold("j", 1, 2)]),
                Credit(1, 2),
                Heartbeat(),
                Log("x"),
            ]
        ),
        encode(
            [
                Head("j", 1, 200, "x"),
                Chunk("j", 1, b"x", more=True),
                Output("j", 1, b"1"),
                End("j", 1, "failed"),
            ]
        ),
    ],
    "reframer": [b"data: 1\n\ndata: 2\r\n\r\n: x\n\ndata:3\r\revent: error\n\r"],
    "webhooks": [
        b"https://example.com:8443/a?b#c",
        b"http://[2606:4700::1]/",
        b"http://127.0.0.1/",
        b"1.1.1.1@a",
        # One address in two notations. The first character selects the kind of the others.
        b"12311::0]",
    ],
    "guard": [b"", bytes(range(64)), bytes(range(255, 127, -1))],
    "head": [b"/v1/models localhost 127.0.0.1:80 chunked 5 100-continue websocket"],
}


async def fuzz(name: str, folder: Path, runs: int, seconds: int) -> int:
    """Fuzz a target in a separate process; return the number of executions."""
    for number, seed in enumerate(SEEDS[name]):
        (folder / str(number)).write_bytes(seed)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "targets.py"), name, str(runs), str(seconds), str(folder)),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdout=PIPE,
        stderr=STDOUT,
    )
    output = (await process.communicate())[0].decode(errors="replace")
    assert process.returncode == 0, output[-4_000:]
    done = re.search(r"Done (\d+) runs", output)
    assert done is not None, output[-4_000:]
    return int(done.group(1))


@pytest.mark.parametrize("name", SEEDS)
async def test_a_parser_keeps_its_invariants_in_a_short_run(name: str, tmp_path: Path) -> None:
    done = await fuzz(name, tmp_path, -1, SHORT_FORM_SECONDS)
    tell(f"fuzz.{name}", done, "0 crashes", "executions")
    assert done > 0


@pytest.mark.torture
@pytest.mark.timeout(LONG_FORM_MAX_SECONDS + 60)
@pytest.mark.parametrize("name", SEEDS)
async def test_a_parser_keeps_its_invariants(name: str, tmp_path: Path) -> None:
    done = await fuzz(name, tmp_path, LONG_FORM_RUNS, LONG_FORM_MAX_SECONDS)
    tell(f"fuzz.{name}", done, f">= {LONG_FORM_RUNS}, 0 crashes", "executions")
    assert done >= LONG_FORM_RUNS
