"""The set-up: finds what this machine can run and installs it, each step only when it is needed."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from . import hardware, stamp
from .console import Stages
from .hardware import Build
from .stamp import Stamp
from .uv import Uv

ROOT = Path(__file__).resolve().parents[2]
HINT = (
    "Run the command again: what was downloaded is kept. If a package cannot be found, "
    "`python3 -m pip config list` shows where this set-up looks."
)
NOT_WRITABLE = (
    "The set-up writes into the checkout; if that cannot be, name a folder that can: "
    "VLLM_SERVERLESS_ENVIRONMENTS=$HOME/vllm-serverless make up"
)
NO_VLLM = """\
vLLM cannot be installed here: {reason}.
The proxy and a worker run here all the same, in front of any OpenAI-compatible server (SGLang, llama.cpp,
vLLM on another machine):

    make up ARGS="--upstream http://127.0.0.1:8000"
"""


def prepare(*, vllm: bool, tests: bool) -> str:
    """Bring the environment up to date and return its Python. `tests` adds test tools, and can do without vLLM."""
    signal.signal(signal.SIGTERM, _stop)
    home = Path(os.environ.get("VLLM_SERVERLESS_ENVIRONMENTS") or ROOT).resolve()
    environment = home / ".venv"
    try:
        with _one_at_a_time(home / ".tools"):
            found = stamp.read(environment)
            is_usable = stamp.is_usable(environment, found, stamp.wanted(ROOT, Build.NONE, tests=tests))
            kept = Build(found.build) if found and is_usable else Build.NONE
            build = _fitting_build(insists=not tests) if vllm else kept
            want = stamp.wanted(ROOT, build, tests=tests)
            if not is_usable or not stamp.is_current(found, want):
                _install(home, environment, found if is_usable else None, want, is_usable=is_usable)
    except KeyboardInterrupt:
        sys.exit("\nset-up: stopped. Run the command again to go on; what was downloaded is kept.")
    except OSError as error:
        sys.exit(f"\nset-up: {error}\n{NOT_WRITABLE}")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return str(environment / "bin" / "python")


def _fitting_build(*, insists: bool) -> Build:
    choice = hardware.choose(hardware.look(), os.environ.get("VLLM_SERVERLESS_BUILD"))
    if choice.build is Build.NONE:
        print(NO_VLLM.format(reason=choice.reason), flush=True)
        if insists:
            sys.exit(1)
    return choice.build


def _install(home: Path, environment: Path, found: Stamp | None, want: Stamp, *, is_usable: bool) -> None:
    begun = time.monotonic()
    uv = Uv(home / ".tools", ROOT / "requirements" / "uv.txt", os.environ)
    stages = Stages(3 + (not uv.is_here()) - is_usable, sys.stdout)
    if not uv.is_here():
        with stages.stage(f"uv {uv.version}"):
            uv.bring(stages)
    env = uv.env()
    python = str(environment / "bin" / "python")
    if not is_usable:
        with stages.stage("virtual environment"):
            shutil.rmtree(environment, ignore_errors=True)
            stages.run([uv.command, "venv", "--quiet", "--python", sys.executable, str(environment)], env, HINT)
    stamp.write(environment, replace(want, is_whole=False))
    install = [uv.command, "pip", "install", "--python", python]
    with stages.stage(_describe(want)):
        look_up = [uv.command, "pip", "compile", "--quiet", "--no-deps", "--python", python, "-"]
        arguments = _packages(want, look_up, env)
        stages.run([*install, *arguments], env, HINT)
    with stages.stage("vllm-serverless"):
        stages.run([*install, "--no-deps", "--editable", str(ROOT)], env, HINT)
    stamp.write(environment, replace(want, tests=want.tests or (found.tests if found else "")))
    print(f"set-up: done in {time.monotonic() - begun:.1f} s", flush=True)


def _describe(want: Stamp) -> str:
    runtime = {Build.CPU: "packages, vLLM for CPU", Build.GPU: "packages, vLLM for GPU", Build.NONE: "packages"}
    return runtime[Build(want.build)] + (", test tools" if want.tests else "")


def _packages(want: Stamp, look_up: list[str], env: dict[str, str]) -> list[str]:
    """The arguments of `uv pip install`. Locks name every package, so nothing is resolved; hashes are checked."""
    requirements = ROOT / "requirements"
    if want.build == Build.GPU:
        # Unlocked: the CUDA build of torch that fits the driver is PyTorch's to know; where its index cannot be
        # reached, the build on PyPI is taken.
        extras = ["--extra", "gpu", *(["--extra", "test"] if want.tests else [])]
        backend = ["--torch-backend", "auto"]
        fits = _is_found("torch", [*look_up, *backend], env)
        return ["--requirements", str(ROOT / "pyproject.toml"), *extras, *(backend if fits else [])]
    locked = ["--no-deps", "--only-binary", ":all:"]
    names = ["cpu.txt" if want.build == Build.CPU else "base.txt", *(["test.txt"] if want.tests else [])]
    for name in names:
        locked += ["--requirements", str(requirements / name)]
    if want.build == Build.NONE:
        return [*locked, "--require-hashes"]
    return [*locked, *_torch_backend(requirements / "cpu.txt", look_up, env)]


def _torch_backend(lock: Path, look_up: list[str], env: dict[str, str]) -> list[str]:
    """Say where torch's CPU build comes from: where pip looks, if it is there, else PyTorch's own index."""
    pin = re.search(r"^torch==\S+\+cpu", lock.read_text(encoding="utf-8"), re.MULTILINE)
    if pin is None:
        sys.exit(f"{lock}: no line pins torch.")
    return [] if _is_found(pin[0], look_up, env) else ["--torch-backend", "cpu"]


def _is_found(requirement: str, look_up: list[str], env: dict[str, str]) -> bool:
    env = {**env, "UV_HTTP_RETRIES": "0"}  # a place that does not answer is no place to install from
    ended = subprocess.run(look_up, env=env, input=requirement.encode(), capture_output=True, check=False)
    return ended.returncode == 0


@contextmanager
def _one_at_a_time(tools: Path) -> Iterator[None]:
    tools.mkdir(parents=True, exist_ok=True)
    with (tools / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("set-up: another one is at work in this checkout; waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
