"""A start reports what the user got wrong, and Ctrl-C ends it without a traceback."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from harness.proxy.command import ROOT, command

IMPORT_SECONDS = 30.0


async def test_misspelt_variables_are_reported_without_their_values() -> None:
    misspelt = {"PROXY_QUEUETIMEOUT": "hush", "WORKER_MODLE": "hush", "PROXY_COLOUR": "hush"}
    # The start is refused, so that the command ends.
    async with command("up", "--host", "0.0.0.0", **misspelt) as up:
        assert await up.process.wait() == 78
    text = up.text
    assert "PROXY_QUEUETIMEOUT is not a setting, and has no effect. Did you mean" in text
    assert "PROXY_QUEUE_TIMEOUT?" in text
    assert "WORKER_MODLE is not a setting, and has no effect. Did you mean WORKER_MODEL?" in text
    assert "PROXY_COLOUR is not a setting, and has no effect." in text
    assert "hush" not in text


async def test_a_worker_reports_misspelt_variables_in_its_log() -> None:
    async with command(
        "worker", "--engine", "scripted", "--connect", "http://127.0.0.1:9", WORKER_DRAIN="hush"
    ) as worker:
        found = await worker.says("event=worker.variable_ignored .*")
        # From then on a signal ends it in order.
        await worker.says("starting the scripted engine")
        assert await worker.stop(signal.SIGTERM) == 0
    meant = "it is not a setting; did you mean WORKER_DRAIN_SECONDS?"
    assert f'variable=WORKER_DRAIN reason="{meant}"' in found.group()
    assert "hush" not in worker.text


@pytest.mark.parametrize("module", ["proxy.cli", "worker_vllm"])
async def test_ctrl_c_during_the_imports_prints_no_traceback(module: str) -> None:
    """Python reports each import with -X importtime, which tells when the signal can be sent."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "importtime", "-m", module, "token"),
        cwd=ROOT, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    async with asyncio.timeout(IMPORT_SECONDS):
        while b"| pydantic_core" not in (line := await process.stderr.readline()).replace(
            b"  ", b""
        ):
            assert line, "the imports are over"
        process.send_signal(signal.SIGINT)
        rest = await process.stderr.read()
        assert await process.wait() == -signal.SIGINT
    assert b"Traceback" not in rest


async def test_the_log_of_a_worker_that_crashed_survives_the_next_start(tmp_path: Path) -> None:
    place = ("--port", "0", "--data-dir", str(tmp_path), "--engine", "scripted")
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "worker-1.log").write_text("the crash")
    async with command("up", *place, "--max-concurrency", "many") as up:
        assert await up.process.wait() == 2
        assert "WORKER_MAX_CONCURRENCY is wrong: Input should be a valid integer" in up.text
        assert "flag --max-concurrency" in up.text
    assert (logs / "worker-1.log.1").read_text() == "the crash"
    assert "WORKER_MAX_CONCURRENCY is wrong" in (logs / "worker-1.log").read_text()
