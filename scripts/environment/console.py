"""What a person sees while the set-up works: one line a stage, its time, and a failed command's whole output."""

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
TICK_S = 0.2
FIRST_NOTE_S = 5.0  # with no terminal: a line when a stage takes longer than this, then every
NEXT_NOTE_S = 30.0
ERASE_LINE = "\r\033[K"
REASON_LINES = 4  # npm prints a stack after its reason


class UnavailableError(Exception):
    """Something that is not needed cannot be had here; the text is the reason, in a tool's own words."""


class StoppedError(Exception):
    """A stage ended early because the whole set-up is being stopped."""


@dataclass(slots=True)
class _Stage:
    number: int
    name: str
    begun: float
    note_at: float = FIRST_NOTE_S
    progress: str = ""


class Stages:
    """Numbered stages on one stream: a live counter on a terminal, plain lines elsewhere.

    Threads can be in one stage each; a stage's line is printed when it ends.
    """

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total = total
        self._stream = stream
        self._live = stream.isatty()
        self._started = 0
        self._running: list[_Stage] = []
        self._of_this_thread = threading.local()
        self._lock = threading.RLock()
        self._stopped = threading.Event()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One line: number, name, seconds."""
        with self._lock:
            self._started += 1
            stage = _Stage(self._started, name, time.monotonic())
            self._running.append(stage)
        self._of_this_thread.stage = stage
        self._show(stage)
        try:
            yield
        except UnavailableError as error:
            reason = textwrap.indent("\n".join(str(error).splitlines()[:REASON_LINES]), "    ")
            self._finish(stage, f"{self._line(stage)}, cannot be had here:\n{reason}\n")
        except BaseException:
            self._finish(stage, "\n" if self._live else "")
            raise
        else:
            self._finish(stage, self._line(stage) + "\n")

    def stop(self) -> None:
        """End the commands of all stages; each raises `StoppedError` in its thread."""
        self._stopped.set()

    def progress(self, text: str) -> None:
        """Show how far the stage of this thread is."""
        stage: _Stage = self._of_this_thread.stage
        stage.progress = f", {text}"
        self._show(stage)

    def run(self, argv: Sequence[str], env: Mapping[str, str], hint: str) -> None:
        """Run a command to its end; when it fails, print all it said and what to do, and exit."""
        status, said = self._run(argv, env)
        if status:
            name = self._of_this_thread.stage.name
            self._write(f"{said}\n\nset-up: stage {name!r} failed (exit {status}). {hint}\n")
            sys.exit(1)

    def ask(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Run a command that finds out whether something can be had; `UnavailableError` where it fails."""
        status, said = self._run(argv, env)
        if status:
            raise UnavailableError(said)

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
            child.wait(TICK_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _line(self, stage: _Stage) -> str:
        elapsed = time.monotonic() - stage.begun
        return f"[{stage.number}/{self._total}] {stage.name + ' ':.<{NAME_WIDTH}} {elapsed:.1f} s{stage.progress}"

    def _show(self, stage: _Stage) -> None:
        """Refresh the live line, which is the oldest stage's; elsewhere print a note when a stage takes long."""
        with self._lock:
            if self._live:
                others = len(self._running) - 1
                self._write(
                    self._line(self._running[0]) + (f", and {others} beside it" if others else "")
                )
            elif time.monotonic() - stage.begun >= stage.note_at:
                stage.note_at += NEXT_NOTE_S
                self._write(f"{self._line(stage)}, still at it\n")

    def _finish(self, stage: _Stage, text: str) -> None:
        with self._lock:
            self._running.remove(stage)
            self._write(text)

    def _write(self, text: str) -> None:
        with self._lock:
            self._stream.write((ERASE_LINE if self._live else "") + text)
            self._stream.flush()
