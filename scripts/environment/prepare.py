"""The set-up: determine what this machine can run and install it, each step only if needed."""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from . import hardware, resources, stamp, suitability, system, table
from .console import Stages
from .hardware import Build
from .install import install, is_current
from .system import Tool
from .table import ROOT, Environment
from .uv import Uv

NOT_WRITABLE = (
    "The set-up writes into the checkout. To use another folder: "
    "VLLM_SERVERLESS_ENVIRONMENTS=$HOME/vllm-serverless make up"
)
NO_VLLM = """\
vLLM cannot be installed here: {reason}.
The proxy and a worker can still serve any OpenAI-compatible server (SGLang, llama.cpp, vLLM on
another machine): make up ARGS="--upstream http://127.0.0.1:8000\""""


def prepare(*, vllm: bool, tests: bool, beside: bool = False, workers: int = 0) -> str:
    """Update the environments, and return the path of the runtime's Python.

    `tests` adds the test tools, and makes vLLM optional; `beside` adds the environments that only
    some tests need. Exit with a message if the machine lacks the memory for `workers` on its CPU.
    """
    with _locked_home() as home:
        rows = [_runtime(home, vllm=vllm, tests=tests), *(table.BESIDE if beside else ())]
        if vllm and workers and rows[0].build is Build.CPU:
            suitability.refuse(
                [suitability.memory_short(resources.free_memory(), workers)], os.environ
            )
        tools = system.wanted(os.environ, uid=os.geteuid()) if tests and beside else ()
        _update(rows, home, tools)
    return str(home / rows[0].folder / rows[0].proof)


def prepare_one(row: Environment) -> str:
    """Update one of the environments beside the runtime, and return the path of its Python."""
    with _locked_home() as home:
        _update([row], home, ())
    if not (home / row.folder / row.proof).exists():
        # The stage has printed the reason.
        sys.exit(1)
    return str(home / row.folder / row.proof)


def prepare_beside(rows: Sequence[Environment]) -> None:
    """Update some environments beside the runtime. One that is unavailable is left out; its stage
    has printed the reason.
    """
    with _locked_home() as home:
        _update(rows, home, ())


@contextmanager
def _locked_home() -> Iterator[Path]:
    """Lock the folder of the environments for this process, and exit with a message on errors."""
    signal.signal(signal.SIGTERM, _stop)
    home = table.home(os.environ)
    try:
        with _one_at_a_time(home / ".tools"):
            yield home
    except KeyboardInterrupt:
        sys.exit(
            "\nset-up: stopped. Run the command again to continue; finished downloads are kept."
        )
    except OSError as error:
        sys.exit(f"\nset-up: {error}\n{NOT_WRITABLE}")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _runtime(home: Path, *, vllm: bool, tests: bool) -> Environment:
    """Return the row of the runtime, with the build of vLLM that fits the machine.

    If `vllm` is False, the build is the one that is installed.
    """
    if vllm:
        return table.runtime(_fitting_build(is_required=not tests), tests=tests)
    none = table.runtime(Build.NONE, tests=tests)
    place = home / none.folder
    found = stamp.read(place)
    is_usable = stamp.is_usable(place / none.proof, found, stamp.wanted(ROOT, none))
    return table.runtime(Build(found.build), tests=tests) if found and is_usable else none


def _fitting_build(*, is_required: bool) -> Build:
    choice = hardware.choose(hardware.look(), os.environ.get("VLLM_SERVERLESS_BUILD"))
    if choice.build is Build.NONE:
        text = NO_VLLM.format(reason=choice.reason)
        if is_required:
            suitability.end(text)
        print(text, flush=True)
    return choice.build


def _update(rows: Sequence[Environment], home: Path, tools: Sequence[Tool]) -> None:
    stale = [row for row in rows if not is_current(row, home)]
    if not stale and not tools:
        return
    started = time.monotonic()
    uv = Uv(home / ".tools", ROOT / "requirements" / "uv.txt", os.environ)
    for row in stale:
        if not row.is_beside and not (home / row.folder / row.proof).exists():
            disks = resources.free_disk([home / row.folder, uv.cache()])
            short = [suitability.disk_short(free, row.build, place) for free, place in disks]
            suitability.refuse(short, os.environ)
    needs_uv = bool(stale) and not uv.is_installed()
    has_byte_code = any(not row.is_beside for row in stale)
    stages = Stages(needs_uv + len(stale) + has_byte_code + bool(tools), sys.stdout)
    if needs_uv:
        with stages.stage(f"uv {uv.version}"):
            uv.install(stages)
    _install_all(stale, home, uv, tools, stages)
    print(f"set-up: done in {time.monotonic() - started:.1f} s", flush=True)


def _install_all(
    rows: Sequence[Environment], home: Path, uv: Uv, tools: Sequence[Tool], stages: Stages
) -> None:
    """Install all rows in parallel, except that npm packages wait for the npm of the runtime."""

    def runtime_and_npm() -> None:
        for row in rows:
            if row.npm_files or not row.is_beside:
                install(row, home, uv, os.environ, stages)

    jobs: list[Callable[[], None]] = [runtime_and_npm]
    jobs += [
        partial(install, row, home, uv, os.environ, stages)
        for row in rows
        if row.is_beside and not row.npm_files
    ]
    if tools:
        jobs.append(partial(system.install, tools, os.environ, stages))
    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            for ended in as_completed([pool.submit(job) for job in jobs]):
                ended.result()
        except BaseException:
            stages.stop()
            raise


@contextmanager
def _one_at_a_time(tools: Path) -> Iterator[None]:
    tools.mkdir(parents=True, exist_ok=True)
    with (tools / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("set-up: waiting for another set-up of this checkout to finish.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
