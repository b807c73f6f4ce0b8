"""`make up`'s story: one command, and the lines it prints work when pasted."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from uuid import uuid4

import pytest
from harness.command import command, family, processes
from harness.real import START_SECONDS
from harness.waiting import until

pytestmark = pytest.mark.timeout(START_SECONDS)


async def run(*arguments: str, stdin: str = "") -> str:
    """What a program prints."""
    process = await asyncio.create_subprocess_exec(*arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_up_from_nothing_to_an_answer(tmp_path: Path) -> None:
    mark = f"story-{uuid4()}"
    async with command("up", "--port", "0", "--data-dir", str(tmp_path), MARK=mark) as up:
        await up.says("importing vLLM", 60)
        await up.says("loading demo", 120)
        await up.says(r"^Ready after \d+ s\.", START_SECONDS)
        await up.says("Ctrl-C")
        assert "toy" in up.text
        assert "make up ARGS=" in up.text
        curl = next(line for line in up.lines if line.startswith("curl "))
        answer = await run("bash", "-c", curl.replace("curl ", "curl -sS ", 1))
        assert "vllm-serverless is a serverless endpoint for vLLM" in answer
        begin = up.lines.index("from openai import OpenAI")
        snippet = up.lines[begin : begin + 5]
        printed = await run(sys.executable, "-", stdin="\n".join(snippet))
        assert "vllm-serverless worker --connect URL" in printed
        leaders = processes(mark)
        assert len(family(leaders)) >= 4  # the proxy, the worker, and vLLM's own two
        assert await up.stop() == 0
        await until(lambda: family(leaders) == [], what="no process is left")


async def test_what_does_not_fit_vllm_is_explained(tmp_path: Path) -> None:
    async with command("up", "--port", "0", "--data-dir", str(tmp_path), "--", "--no-such-flag", COLUMNS="200") as up:
        await up.says("A worker could not start", 120)
        assert await asyncio.wait_for(up.process.wait(), 30) == 1
        assert "the command line is wrong: unrecognized arguments: --no-such-flag" in up.text
        assert "usage:" not in up.text


async def test_a_model_that_is_not_there_is_explained(tmp_path: Path) -> None:
    missing = {"HF_HUB_OFFLINE": "1", "COLUMNS": "400"}  # the path is not wrapped
    where = str(tmp_path / "no-model")
    async with command("up", "--model", where, "--port", "0", "--data-dir", str(tmp_path), **missing) as up:
        await up.says("A worker could not start", 120)
        assert await asyncio.wait_for(up.process.wait(), 30) != 0
        assert "no-model" in up.text
