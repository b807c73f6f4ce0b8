"""The output of the set-up: one line per stage, and the full output of failed commands."""

import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

NAME_WIDTH = 40
REFRESH_SECONDS = 0.2
# Without a terminal, a stage that takes longer than the first time prints a note, and then at
# intervals.
FIRST_NOTE_SECONDS = 5.0
NEXT_NOTE_SECONDS = 30.0
ERASE_LINE = "\r\033[K"
# npm prints a stack trace after the reason of a failure.
REASON_MAX_LINES = 4


class UnavailableError(Exception):
    """An optional package is not available; the message is the output of the tool."""


class StoppedError(Exception):
    """A stage ended early because the set-up is being stopped."""


@dataclass(slots=True)
class _Stage:
    number: int
    name: str
    started: float
    note_at: float = FIRST_NOTE_SECONDS
    progress: str = ""


class Stages:
    """Numbered stages on a stream: a live counter on a terminal, otherwise plain lines.

    Each thread can be in one stage; the line of a stage is printed when the stage ends.
    """

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total = total
        self._stream = stream
        self._live = stream.isatty()
        self._number_started = 0
        self._running: list[_Stage] = []
        self._of_this_thread = threading.local()
        self._lock = threading.RLock()
        self._stopped = threading.Event()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show a stage for as long as the context lasts: its number, name and seconds.

        An UnavailableError is printed and does not propagate.
        """
        with self._lock:
            self._number_started += 1
            stage = _Stage(self._number_started, name, time.monotonic())
            self._running.append(stage)
        self._of_this_thread.stage = stage
        self._show(stage)
        try:
            yield
        except UnavailableError as error:
            lines = str(error).splitlines()[:REASON_MAX_LINES]
            reason = textwrap.indent("\n".join(lines), "    ")
            self._finish(stage, f"{self._line(stage)}, not available here:\n{reason}\n")
        except BaseException:
            self._finish(stage, "\n" if self._live else "")
            raise
        else:
            self._finish(stage, self._line(stage) + "\n")

    def stop(self) -> None:
        """Terminate the commands of all stages; each raises StoppedError in its thread."""
        self._stopped.set()

    def progress(self, text: str) -> None:
        """Show the progress of the stage of this thread."""
        stage: _Stage = self._of_this_thread.stage
        stage.progress = f", {text}"
        self._show(stage)

    def run(self, argv: Sequence[str], env: Mapping[str, str], hint: str) -> None:
        """Run a command. If it fails, print its output and `hint`, and exit with status 1."""
        status, printed = self._run(argv, env)
        if status:
            name = self._of_this_thread.stage.name
            self._write(f"{printed}\n\nset-up: stage {name!r} failed (exit {status}). {hint}\n")
            sys.exit(1)

    def probe(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Run a command that checks for a package. Raises UnavailableError if it fails."""
        status, printed = self._run(argv, env)
        if status:
            raise UnavailableError(printed)

    def _run(self, argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            try:
                while not self._has_ended(child):
                    self._show(self._of_this_thread.stage)
                    if self._stopped.is_set():
                        raise StoppedError
            finally:
                if child.poll() is None:
                    child.terminate()
                    child.wait()
            output.seek(0)
            return child.returncode, output.read().decode(errors="replace").strip()

    def _has_ended(self, child: subprocess.Popen[bytes]) -> bool:
        try:
            child.wait(REFRESH_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _line(self, stage: _Stage) -> str:
        elapsed = time.monotonic() - stage.started
        title = f"[{stage.number}/{self._total}] {stage.name + ' ':.<{NAME_WIDTH}}"
        return f"{title} {elapsed:.1f} s{stage.progress}"

    def _show(self, stage: _Stage) -> None:
        """Update the live line, or without a terminal print notes about stages that take long."""
        with self._lock:
            if self._live:
                others = len(self._running) - 1
                suffix = f", and {others} more in parallel" if others else ""
                self._write(self._line(self._running[0]) + suffix)
            elif time.monotonic() - stage.started >= stage.note_at:
                stage.note_at += NEXT_NOTE_SECONDS
                self._write(f"{self._line(stage)}, still running\n")

    def _finish(self, stage: _Stage, text: str) -> None:
        with self._lock:
            self._running.remove(stage)
            self._write(text)

    def _write(self, text: str) -> None:
        with self._lock:
            self._stream.write((ERASE_LINE if self._live else "") + text)
            self._stream.flush()
