"""What a person sees while the set-up works: one line a stage, its time, and a failed command's whole output."""

import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

NAME_WIDTH = 40
TICK_S = 0.2
FIRST_NOTE_S = 5.0  # with no terminal: a line when a stage takes longer than this, then every
NEXT_NOTE_S = 30.0
REASON_LINES = 4  # npm prints a stack after its reason


class UnavailableError(Exception):
    """Something that is not needed cannot be had here; the text is the reason, in a tool's own words."""


class Stages:
    """Numbered stages on one stream: a live counter on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total = total
        self._stream = stream
        self._live = stream.isatty()
        self._number = 0
        self._name = ""
        self._begun = 0.0
        self._note_at = 0.0
        self._progress = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One line: number, name, seconds."""
        self._number += 1
        self._name = name
        self._begun = time.monotonic()
        self._note_at = FIRST_NOTE_S
        self._progress = ""
        self._show()
        try:
            yield
        except UnavailableError as error:
            reason = textwrap.indent("\n".join(str(error).splitlines()[:REASON_LINES]), "    ")
            self._write(("\r" if self._live else "") + f"{self._line()}, cannot be had here:\n{reason}\n")
            return
        except BaseException:
            self._write("\n" if self._live else "")
            raise
        self._write(("\r" if self._live else "") + self._line() + "\n")

    def progress(self, text: str) -> None:
        """Show how far a stage is."""
        self._progress = f", {text}"
        self._show()

    def run(self, argv: Sequence[str], env: Mapping[str, str], hint: str) -> None:
        """Run a command to its end; when it fails, print all it said and what to do, and exit."""
        status, said = self._run(argv, env)
        if status:
            self._write("\n" if self._live else "")
            self._write(f"{said}\n\nset-up: stage {self._name!r} failed (exit {status}). {hint}\n")
            sys.exit(1)

    def ask(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Run a command that finds out whether something can be had; `UnavailableError` where it fails."""
        status, said = self._run(argv, env)
        if status:
            raise UnavailableError(said)

    def _run(self, argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            try:
                while not self._has_ended(child):
                    self._show()
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

    def _line(self) -> str:
        elapsed = time.monotonic() - self._begun
        return f"[{self._number}/{self._total}] {self._name + ' ':.<{NAME_WIDTH}} {elapsed:.1f} s{self._progress}"

    def _show(self) -> None:
        elapsed = time.monotonic() - self._begun
        if self._live:
            self._write("\r" + self._line())
        elif elapsed >= self._note_at:
            self._note_at += NEXT_NOTE_S
            self._write(f"{self._line()}, still at it\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
