"""The commands of docs/install.md install a machine that runs only a proxy or only a worker."""

import asyncio
import os
import re
import subprocess
import tomllib
from pathlib import Path

import aiohttp
import pytest
from harness.proxy.command import ROOT, command
from harness.proxy.server import CHAT, chat
from harness.tools.waiting import until

PAGE = ROOT / "docs" / "install.md"
INSTALL_SECONDS = 300.0


def blocks() -> list[str]:
    """Return the commands of the page, one text for each block."""
    return re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_extras_of_the_page_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set(re.findall(r"\.\[(\w+)\]", PAGE.read_text()))
    assert named
    assert named <= project["optional-dependencies"].keys()


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["newest versions", "locked versions"])
async def test_an_installation_with_pip_serves(tmp_path: Path, way: str) -> None:
    newest, locked = blocks()
    first, install, version = newest.splitlines()
    commands = [first, *([install] if way == "newest versions" else locked.splitlines()), version]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ended = await asyncio.to_thread(
        subprocess.run,
        ["/bin/sh", "-ec", "\n".join(commands)],
        cwd=ROOT, env=env | {"HOME": str(tmp_path)}, capture_output=True, text=True,
        timeout=INSTALL_SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"^vllm-serverless .*no vLLM", ended.stdout, re.MULTILINE)
    python = str(tmp_path / "vllm-serverless" / "bin" / "python")
    place = ("--port", "0", "--data-dir", str(tmp_path / "data"))
    variables = {"PYTHONPATH": "", "WORKER_TOKEN_FILE": str(tmp_path / "data" / "worker-token")}
    async with command("proxy", *place, python=python, cwd=tmp_path, **variables) as proxy:
        url = (await proxy.says(r"listens on (http://\S+)\.")).group(1)
        worker = ("worker", "--connect", url, "--engine", "scripted")
        async with (
            command(*worker, python=python, cwd=tmp_path, **variables),
            aiohttp.ClientSession(url) as http,
        ):

            async def is_ready() -> bool:
                async with http.get("/readyz") as response:
                    return response.status == 200

            await until(is_ready, 30, "a worker is ready")
            async with http.post(CHAT, json=chat("installed")) as response:
                assert response.status == 200
