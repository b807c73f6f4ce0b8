"""The peers: other proxies for OpenAI-compatible servers, each as one process on one core.

All of them forward to the mock upstream. Their access logs are off, as ours is.
"""

import json
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from .mock import mock_upstream
from .model import NotInstalledError, Rig, RunningSide, Side
from .ports import free_port
from .processes import SERVER_CORE, pinned, until_ready

CONFIGURATIONS = Path(__file__).resolve().parents[1] / "peers"
REQUEST = {"model": "mock", "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}


@asynccontextmanager
async def _served(
    folder: Path,
    port: int,
    upstream: RunningSide,
    *command: str,
    environment: dict[str, str] | None = None,
    key: str = "",
) -> AsyncIterator[RunningSide]:
    """Run a peer, and yield it as soon as it forwards requests. `key`: its API key, if any."""
    log = folder / "log"
    async with pinned(SERVER_CORE, *command, log=log, environment=environment) as process:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        await until_ready(process, log, url, headers=headers, body=REQUEST)
        lines = tuple(f"{name}: {value}" for name, value in headers.items())
        yield RunningSide(port, {"server": process.pid, **upstream.pids}, lines)


@asynccontextmanager
async def _nginx(rig: Rig) -> AsyncIterator[RunningSide]:
    program = shutil.which("nginx")
    if program is None:
        raise NotInstalledError("apt-get install nginx-light")
    port = free_port()
    async with mock_upstream(rig) as upstream:
        with TemporaryDirectory(dir=rig.folder, prefix="nginx-") as name:
            folder = Path(name)
            text = (CONFIGURATIONS / "nginx.conf").read_text()
            text = text.replace("@PORT@", str(port)).replace("@UPSTREAM@", str(upstream.port))
            (folder / "nginx.conf").write_text(text)
            arguments = ("-p", name, "-c", "nginx.conf", "-g", "daemon off;")
            async with _served(folder, port, upstream, program, *arguments) as target:
                yield target


@asynccontextmanager
async def _vllm_router(rig: Rig) -> AsyncIterator[RunningSide]:
    program = _program(rig, "vllm-router")
    port = free_port()
    async with mock_upstream(rig) as upstream:
        with TemporaryDirectory(dir=rig.folder, prefix="vllm-router-") as name:
            arguments = (
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--worker-urls", f"http://127.0.0.1:{upstream.port}"),
                *("--policy", "round_robin", "--log-level", "error"),
                *("--prometheus-port", str(free_port())),
            )
            async with _served(Path(name), port, upstream, program, *arguments) as target:
                yield target


@asynccontextmanager
async def _litellm(rig: Rig) -> AsyncIterator[RunningSide]:
    program = _program(rig, "litellm")
    port = free_port()
    async with mock_upstream(rig) as upstream:
        with TemporaryDirectory(dir=rig.folder, prefix="litellm-") as name:
            folder = Path(name)
            model = {
                "model": "openai/mock",
                "api_base": f"http://127.0.0.1:{upstream.port}/v1",
                "api_key": "unused",
            }
            # JSON is valid YAML.
            text = json.dumps({"model_list": [{"model_name": "mock", "litellm_params": model}]})
            (folder / "config.yaml").write_text(text)
            arguments = (
                *("--config", str(folder / "config.yaml"), "--host", "127.0.0.1"),
                *("--port", str(port), "--num_workers", "1", "--telemetry", "False"),
            )
            key = f"sk-{secrets.token_hex()}"
            environment = {
                # It does not start without a key.
                "LITELLM_MASTER_KEY": key,
                # Otherwise it downloads its table of prices at each start.
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LITELLM_LOG": "ERROR",
            }
            served = _served(
                folder, port, upstream, program, *arguments, environment=environment, key=key
            )
            async with served as target:
                yield target


def _program(rig: Rig, name: str) -> str:
    program = rig.environments / f".venv-{name}" / "bin" / name
    if not program.exists():
        raise NotInstalledError("make bench")
    return str(program)


NGINX = Side("nginx", _nginx)
VLLM_ROUTER = Side("vllm-router", _vllm_router)
LITELLM = Side("LiteLLM", _litellm)
