"""`make up` starts everything with one command, and the examples that it prints work."""

import asyncio
import re
import shutil
import sys
import sysconfig
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from harness.proxy.command import ROOT, Command, command, family, processes
from harness.tools.machine import hidden_folder, path_without_compilers
from harness.tools.waiting import until
from harness.worker.real_vllm import START_SECONDS

pytestmark = pytest.mark.timeout(START_SECONDS)


async def run(*arguments: str, stdin: str = "") -> str:
    """Run a program and return its output. Fails if its exit status is not 0."""
    process = await asyncio.create_subprocess_exec(*arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def logprobs(up: Command) -> Any:
    """Return the log probabilities of a response.

    vLLM compiles a function for them even when it runs eager.
    """
    url = (await up.says(r"base URL\s+(http://\S+)")).group(1)
    body = {"model": "demo", "prompt": "What is", "max_tokens": 2, "logprobs": 1}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/completions", json=body) as response,
    ):
        answer = await response.json()
        assert response.status == 200, answer
        return answer["choices"][0]["logprobs"]["token_logprobs"]


async def test_up_from_nothing_to_an_answer_on_a_machine_without_a_compiler(tmp_path: Path) -> None:
    mark = f"story-{uuid4()}"
    place = ("--port", "0", "--data-dir", str(tmp_path / "data"))
    bare = {
        "PATH": path_without_compilers(tmp_path / "bin"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    async with command(
        "up", *place, through=("env", "-u", "CC", "-u", "CXX"), **bare, MARK=mark
    ) as up:
        await up.says("importing vLLM", 60)
        await up.says("loading demo", 120)
        await up.says(r"^Ready after \d+ s\.", START_SECONDS)
        await up.says("Ctrl-C")
        assert "demo model" in up.text
        assert "vllm-serverless up --model Qwen/Qwen3-0.6B" in up.text
        curl = next(line for line in up.lines if line.startswith("curl "))
        answer = await run("bash", "-c", curl.replace("curl ", "curl -sS ", 1))
        assert "vllm-serverless is a serverless endpoint for vLLM" in answer
        begin = up.lines.index("from openai import OpenAI")
        snippet = up.lines[begin : begin + 5]
        printed = await run(sys.executable, "-", stdin="\n".join(snippet))
        assert "vllm-serverless worker --connect URL" in printed
        assert len(await logprobs(up)) == 2
        assert list((tmp_path / "cache").rglob("*.cpp")) == [], "the demo compiles no kernel"
        leaders = processes(mark)
        # The proxy, the worker, and two processes of vLLM.
        assert len(family(leaders)) >= 4
        assert await up.stop() == 0
        await until(lambda: family(leaders) == [], what="no process is left")


async def test_a_start_without_pythons_headers_runs_eager_and_reports_it(
    tmp_path: Path,
) -> None:
    through = hidden_folder(sysconfig.get_path("include"))
    wanted = {"ENFORCE_EAGER": "false", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    async with command(
        "up", "--port", "0", "--data-dir", str(tmp_path), through=through, **wanted
    ) as up:
        await up.says(
            r"Python's headers \(\S+/Python\.h\) not found: vLLM runs without compiled kernels",
            START_SECONDS,
        )
        assert "apt install g++ python3-dev" in up.text
        await up.says(r"^Ready after \d+ s\.", START_SECONDS)
        assert len(await logprobs(up)) == 2


async def test_a_broken_model_is_named_as_the_cause(tmp_path: Path) -> None:
    model = tmp_path / "broken"
    shutil.copytree(ROOT / "worker_vllm" / "demo", model)
    with (model / "model.safetensors").open("r+b") as weights:
        weights.truncate(100_000)
    eager = ("--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "512")
    place = ("--port", "0", "--data-dir", str(tmp_path / "data"))
    small = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    async with command("up", "--model", str(model), *place, "--", *eager, **small) as up:
        await up.says("A worker could not start", START_SECONDS)
        assert await asyncio.wait_for(up.process.wait(), 30) == 1
        await up.says("Its complete output is in")
    lines = up.text.partition("A worker could not start")[2].splitlines()
    assert lines[0] == " (exit status 1):"
    assert re.match(r"  safetensors\S*SafetensorError: Error while deserializing header", lines[1])
    assert len(lines) == 3


async def test_an_invalid_flag_of_vllm_is_explained(tmp_path: Path) -> None:
    async with command(
        "up", "--port", "0", "--data-dir", str(tmp_path), "--", "--no-such-flag", COLUMNS="200"
    ) as up:
        await up.says("A worker could not start", 120)
        assert await asyncio.wait_for(up.process.wait(), 30) == 1
        assert "the command line is wrong: unrecognized arguments: --no-such-flag" in up.text
        assert "usage:" not in up.text


async def test_a_model_that_is_not_there_is_explained(tmp_path: Path) -> None:
    missing = {"HF_HUB_OFFLINE": "1", "COLUMNS": "400"}  # the path is not wrapped
    where = str(tmp_path / "no-model")
    async with command(
        "up", "--model", where, "--port", "0", "--data-dir", str(tmp_path), **missing
    ) as up:
        await up.says("A worker could not start", 120)
        assert await asyncio.wait_for(up.process.wait(), 30) != 0
        assert "no-model" in up.text
