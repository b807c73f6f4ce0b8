"""What a person sees while `up` starts, and when it is ready."""

import re
import sys
import time
from collections import defaultdict, deque
from collections.abc import Sequence

from rich.console import Console
from rich.status import Status
from rich.text import Text

from proxy.cli.root_cause import root_cause
from proxy.jobs.model import WorkerId
from proxy.wire.escaping import NEWLINE_AND_TAB, escape_controls

KEPT_LINES = 2000  # of a worker's output, in which the cause is looked for when it cannot start
KEPT_CHARACTERS = 2000  # of one of these lines: vLLM logs its whole state in one
SHOWN_LINES = 25  # of its end, where no cause is found
_STAGE = re.compile(r'event=worker\.stage text=(?:"([^"]*)"|(\S+))')


class Progress:
    """The stages of the workers with the time they take: one live line on a terminal, else a line for each stage."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._began = time.monotonic()
        self._live: Status | None = None
        self._text = "starting"
        self._said: defaultdict[WorkerId, deque[str]] = defaultdict(
            lambda: deque(maxlen=KEPT_LINES)
        )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def begin(self) -> None:
        """Show the live line, if this is a terminal."""
        if self._console.is_terminal:
            self._live = self._console.status(Text(self._text))
            self._live.start()

    def end(self) -> None:
        """No more live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def refresh(self) -> None:
        """Let the time go on."""
        if self._live is not None:
            self._live.update(Text.assemble(self._text, (f" ({self.seconds:.0f} s)", "dim")))

    def hear(self, worker: WorkerId, line: str) -> None:
        """Take a line of a worker's output, which the provider has escaped."""
        self._said[worker].append(line[:KEPT_CHARACTERS])
        if found := _STAGE.search(line):
            text = found.group(1) or found.group(2)
            if self._live is None:
                self._console.print(
                    f"[{self.seconds:6.1f} s] {worker}: {text}", markup=False, soft_wrap=True
                )
            else:
                self._text = f"{worker}: {text}"
                self.refresh()

    def forget(self, worker: WorkerId) -> None:
        """Drop what a worker has printed: it has ended, and another one takes its place."""
        self._said.pop(worker, None)

    def fail(self, worker: WorkerId, status: int, logs: str) -> None:
        """Say why a worker cannot start: the cause that its output names, else the end of its output."""
        self.end()
        said = self._said[worker]
        cause = root_cause(said)
        ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        self._console.print(f"A worker could not start ({ended}):", style="bold red")
        for line in cause.splitlines() or list(said)[-SHOWN_LINES:]:
            self._console.print(f"  {line}", markup=False, soft_wrap=True)
        self._console.print(f"All that it printed is in {logs}.", markup=False, soft_wrap=True)


def address(host: str, port: int) -> str:
    """The base URL at which this machine reaches the proxy."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)  # noqa: S104 - shown, not bound
    return f"http://{shown}:{port}"


def ready_text(
    url: str, models: Sequence[str], *, seconds: float, needs_key: bool, is_demo: bool, logs: str
) -> str:
    """What to do now: lines that work when pasted."""
    models = [escape_controls(model) for model in models]
    model = models[0] if models else "MODEL"
    key = "YOUR_KEY" if needs_key else "none"
    header = " -H 'Authorization: Bearer YOUR_KEY'" if needs_key else ""
    toy = (
        "\n  This model is a toy of 3 MB that knows a few answers about this project."
        '\n  A real one:  make up ARGS="--model Qwen/Qwen3-0.6B"\n'
    )
    return f"""
Ready after {seconds:.0f} s.

  base URL  {url}/v1
  model     {", ".join(models)}
  key       {"one of the API keys" if needs_key else "none needed on this machine"}
{toy if is_demo else ""}
With curl:

curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} -d '{{"model": "{model}", \
"messages": [{{"role": "user", "content": "What is this?"}}]}}'

With Python (pip install openai):

from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="{key}")
messages = [{{"role": "user", "content": "How do I connect a worker?"}}]
for chunk in client.chat.completions.create(model="{model}", messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)

Logs of the workers: {logs}. Ctrl-C finishes what is running and ends everything.
"""


def say(text: str) -> None:
    """Print lines for the person who runs the command, not for a log."""
    print(escape_controls(text, keep=NEWLINE_AND_TAB), file=sys.stderr, flush=True)
