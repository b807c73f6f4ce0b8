"""The commands `up` and `proxy`: run the proxy in this process, and local workers as children."""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from secrets import token_hex
from typing import IO

from proxy.app import Parts, compose
from proxy.cli import console
from proxy.cli.usage import command_line
from proxy.cli.worker import DEMO, arguments, environment
from proxy.edge.memory import tune_collector
from proxy.jobs.model import WorkerId
from proxy.scaler.process import FINAL_STATUSES, Command, ProcessProvider
from proxy.service.ports import WorkerExit
from proxy.serving import listen, running, until_signal, until_store_is_gone
from proxy.settings import Settings
from proxy.store.errors import StoreUnavailableError
from proxy.wire.secret_file import SecretFileError

EX_CONFIG = 78
EX_UNAVAILABLE = 69
# 128 + SIGINT: the status that shells report for a command that Ctrl-C has ended.
EX_INTERRUPTED = 130
# A local worker whose proxy has crashed exits after this time without a new proxy.
WORKER_ORPHAN_SECONDS = 60
PROGRESS_REFRESH_SECONDS = 0.25
# The logs of earlier starts of a local worker that are kept, beside the current one.
EARLIER_LOGS = 3
# The flags of an example that is shown with the demo model.
OTHER_MODEL = "--model Qwen/Qwen3-0.6B"
# If one of these is set, the workers do not serve the demo model.
MODEL_VARIABLES = ("WORKER_MODEL", "MODEL_NAME", "WORKER_UPSTREAM", "WORKER_BAKED_MODEL")


async def run(
    settings: Settings, workers: int, flags: dict[str, str | None], vllm_flags: Sequence[str]
) -> int:
    """Serve until a signal arrives; return the exit status, which is 0 after a graceful shutdown.

    `flags` are those of the local workers (`WORKER_*` without the prefix, in lower case), and
    `vllm_flags` the arguments of vLLM. With `workers` 0 only the proxy runs.
    """
    try:
        refused = settings.refusal()
    except OSError as error:
        return _report_data_dir(settings, error)
    if refused:
        console.say(f"vllm-serverless: {refused}")
        return EX_CONFIG
    try:
        listener = listen(settings)
    except OSError as error:
        console.say(
            f"vllm-serverless: cannot listen on {settings.host} port {settings.port}:"
            f" {error.strerror}. Choose another port with --port (PROXY_PORT), or another address"
            " with --host (PROXY_HOST)."
        )
        return EX_CONFIG
    try:
        parts = compose(settings)
    except OSError as error:
        listener.close()
        return _report_data_dir(settings, error)
    except SecretFileError as error:
        listener.close()
        console.say(f"vllm-serverless: {error}")
        return EX_CONFIG
    url = console.address(settings.host, listener.getsockname()[1])
    local = LocalWorkers(parts, url, workers, flags, vllm_flags) if workers else None

    def exit_at_once() -> None:
        """Exit without any cleanup, and without a traceback: the store survives a crash."""
        if local is not None:
            local.provider.kill()
        os._exit(EX_INTERRUPTED)

    stopped = asyncio.create_task(_until_stopped(parts, exit_at_once))
    async with AsyncExitStack() as stack:
        if local is not None:
            await stack.enter_async_context(local.provider.open(local.exited))
            # The stack closes in reverse order: the proxy first, then this line, then the workers.
            stack.callback(local.report_stopping)
        try:
            await stack.enter_async_context(running(parts, listener))
        except StoreUnavailableError as error:
            console.say(f"vllm-serverless: {error}")
            return EX_UNAVAILABLE
        tune_collector()
        if local is None:
            console.say(
                f"The proxy listens on {url}. To start a worker:"
                f" vllm-serverless worker --connect {url} --model MODEL"
            )
            await stopped
        else:
            await local.run(stopped)
        failure = abs(local.failure) if local is not None else 0
        _report_shutdown(parts, failure)
    # The store can also fail during the drain.
    return EX_UNAVAILABLE if parts.store.gone else failure


def _report_shutdown(parts: Parts, failure: int) -> None:
    if parts.store.gone:
        console.say(
            f"vllm-serverless: {parts.store.gone}. The proxy exits, because it cannot keep jobs:"
            " see docs/durability.md."
        )
    elif not failure:
        console.say(
            "Shutting down: finishing the calls in flight. Press Ctrl-C again to exit at once."
        )


async def _until_stopped(parts: Parts, exit_at_once: Callable[[], None]) -> None:
    """Wait for a signal, or until the store is gone."""
    signalled = asyncio.create_task(until_signal(exit_at_once))
    gone = asyncio.create_task(until_store_is_gone(parts))
    try:
        await asyncio.wait({signalled, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        signalled.cancel()
        gone.cancel()


def _report_data_dir(settings: Settings, error: OSError) -> int:
    console.say(
        f"vllm-serverless: cannot use the data directory {settings.data_dir}: {error.strerror}."
        " Choose another one with --data-dir (PROXY_DATA_DIR)."
    )
    return EX_UNAVAILABLE


class LocalWorkers:
    """The workers that `up` starts, and their progress on the terminal."""

    def __init__(
        self,
        parts: Parts,
        url: str,
        number: int,
        flags: dict[str, str | None],
        vllm_flags: Sequence[str],
    ) -> None:
        self._parts = parts
        self._url = url
        self._number = number
        self._logs = parts.settings.data_dir / "logs"
        self._progress = console.Progress()
        variables = environment(**flags)
        self._is_demo = not any(variables.get(name) for name in MODEL_VARIABLES)
        self._has_upstream = bool(variables.get("WORKER_UPSTREAM"))
        self._failed = asyncio.Event()
        self._was_ready = False
        self.failure = 0
        self._failed_worker = WorkerId("")
        self._flags = flags
        command = Command(arguments(list(vllm_flags)), self._environment)
        self.provider = ProcessProvider(
            command, self._progress.on_line, self._log_file, new_worker_id
        )
        parts.stuck.provided_by(self.provider)

    def _environment(self, number: int, worker: WorkerId) -> dict[str, str]:
        metrics_port = self._flags.get("metrics_port")
        if metrics_port and metrics_port.isdecimal() and int(metrics_port):
            metrics_port = str(int(metrics_port) + number)
        own = {
            "id": worker,
            "model": DEMO if self._is_demo else self._flags.get("model"),
            "connect": self._url,
            "endpoint": next(iter(self._parts.endpoints)).id,
            "token": self._parts.token,
            "metrics_port": metrics_port,
            "orphan_seconds": WORKER_ORPHAN_SECONDS,
        }
        return environment(**self._flags | own)

    def _forget_other_model(self) -> None:
        """Forget the models of the last start if this one serves another model.

        Otherwise calls of the new model would be rejected until its worker is ready.
        """
        if self._flags.get("upstream"):
            return
        name = self._flags.get("served_model_name") or self._flags.get("model") or DEMO
        endpoint = next(iter(self._parts.endpoints))
        if name not in [model.id for model in self._parts.endpoints.announced(endpoint.id)]:
            self._parts.endpoints.forget_announced(endpoint)

    def exited(self, worker_exit: WorkerExit) -> None:
        """Handle the exit of a worker; if it exited during the start, the whole command fails.

        A restart would not help such a worker, so the user has to see the cause.
        """
        self._parts.worker_exited(worker_exit)
        is_final = not self._was_ready or worker_exit.status in FINAL_STATUSES
        if is_final and not worker_exit.planned:
            self.failure = worker_exit.status
            self._failed_worker = worker_exit.worker
            self._failed.set()
        else:
            self._progress.forget(worker_exit.worker)

    async def run(self, stopped: asyncio.Task[None]) -> None:
        """Start the workers and report when they are ready.

        Return when `stopped` is done or a worker cannot start; then `failure` is its exit status.
        """
        failed = asyncio.create_task(self._failed.wait())
        ready = asyncio.create_task(self._until_ready())
        self._forget_other_model()
        self._progress.begin()
        try:
            self.provider.scale(self._number)
            await asyncio.wait({stopped, failed, ready}, return_when=asyncio.FIRST_COMPLETED)
            self._progress.end()
            if ready.done():
                self._was_ready = True
                self._print_ready()
                await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                self._progress.fail(self._failed_worker, self.failure, f"{self._logs}/")
        finally:
            self._progress.end()
            failed.cancel()
            ready.cancel()

    def report_stopping(self) -> None:
        """Print that the running workers are being stopped, because vLLM needs seconds to exit."""
        number = len(self.provider.workers())
        if number:
            workers = "the worker" if number == 1 else f"{number} workers"
            reason = "" if self._has_upstream else ": vLLM needs up to 10 s to exit"
            console.say(f"Stopping {workers}{reason}.")

    async def _until_ready(self) -> None:
        first = next(iter(self._parts.endpoints))
        while sum(worker.is_ready for worker in self._parts.fleet.of(first.id)) < self._number:
            self._progress.refresh()
            await asyncio.sleep(PROGRESS_REFRESH_SECONDS)

    def _print_ready(self) -> None:
        first = next(iter(self._parts.endpoints))
        print(
            console.ready_text(
                self._url,
                [model.id for model in self._parts.endpoints.models(first)],
                seconds=self._progress.seconds,
                needs_key=bool(self._parts.settings.client_keys()),
                other_model=command_line("up", OTHER_MODEL) if self._is_demo else "",
                logs=f"{self._logs}/",
            ),
            flush=True,
        )

    def _log_file(self, number: int) -> IO[bytes]:
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._logs / f"worker-{number + 1}.log"
        keep_earlier(path, EARLIER_LOGS)
        return path.open("wb")


def keep_earlier(path: Path, number: int) -> None:
    """Rename a log to `NAME.1`, the one before it to `NAME.2`, and so on up to `number`."""
    names = [path, *(path.with_name(f"{path.name}.{one}") for one in range(1, number + 1))]
    for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
        if newer.exists():
            newer.replace(older)


def new_worker_id() -> WorkerId:
    """Return a new random worker id."""
    return WorkerId(f"w-{token_hex(4)}")
