"""The terminal output of `up`: the progress of the start, and what to do when it is ready."""

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

# The last lines of a worker's output are kept, to find the cause if it cannot start. Lines are cut,
# because vLLM logs its whole state in one line.
KEPT_OUTPUT_LINES = 2000
KEPT_LINE_CHARACTERS = 2000
# The number of last lines to show if no cause is found.
SHOWN_OUTPUT_LINES = 25
_STAGE = re.compile(r'event=worker\.stage text=(?:"([^"]*)"|(\S+))')


class Progress:
    """The stages of the workers with times: one live line on a terminal, else a line per stage."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._started = time.monotonic()
        self._live: Status | None = None
        self._text = "starting"
        self._output: defaultdict[WorkerId, deque[str]] = defaultdict(
            lambda: deque(maxlen=KEPT_OUTPUT_LINES)
        )

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def begin(self) -> None:
        """Show the live line if the standard error output is a terminal."""
        if self._console.is_terminal:
            self._live = self._console.status(Text(self._text))
            self._live.start()

    def end(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def refresh(self) -> None:
        """Update the elapsed time in the live line."""
        if self._live is not None:
            self._live.update(Text.assemble(self._text, (f" ({self.seconds:.0f} s)", "dim")))

    def on_line(self, worker: WorkerId, line: str) -> None:
        """Handle a line of a worker's output, which the provider has escaped."""
        self._output[worker].append(line[:KEPT_LINE_CHARACTERS])
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
        """Discard the output of a worker that has exited and is replaced by another one."""
        self._output.pop(worker, None)

    def fail(self, worker: WorkerId, status: int, logs: str) -> None:
        """Print why a worker could not start: the cause in its output, else the end of its output.

        `status` is the exit status of its process, or a negative signal number; `logs` is a path.
        """
        self.end()
        output = self._output[worker]
        cause = root_cause(output)
        exited = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        self._console.print(f"A worker could not start ({exited}):", style="bold red")
        for line in cause.splitlines() or list(output)[-SHOWN_OUTPUT_LINES:]:
            self._console.print(f"  {line}", markup=False, soft_wrap=True)
        self._console.print(f"Its complete output is in {logs}.", markup=False, soft_wrap=True)


def address(host: str, port: int) -> str:
    """Return the base URL under which this machine reaches the proxy."""
    # Shown, not bound.
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)  # noqa: S104
    return f"http://{shown}:{port}"


def ready_text(
    url: str, models: Sequence[str], *, seconds: float, needs_key: bool, other_model: str, logs: str
) -> str:
    """Return what to print when the workers are ready: the URL, and examples that can be pasted.

    `other_model` is the command that serves another model than the demo; empty if it is not served.
    """
    models = [escape_controls(model) for model in models]
    model = models[0] if models else "MODEL"
    key = "YOUR_KEY" if needs_key else "none"
    header = " -H 'Authorization: Bearer YOUR_KEY'" if needs_key else ""
    toy = (
        "\n  This is a demo model of 3 MB that knows a few answers about this project."
        f"\n  To serve a real model:  {other_model}\n"
    )
    return f"""
Ready after {seconds:.0f} s.

  base URL  {url}/v1
  model     {", ".join(models)}
  key       {"one of the API keys" if needs_key else "not required on this machine"}
{toy if other_model else ""}
With curl:

curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} \
-d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is this?"}}]}}'

With Python (pip install openai):

from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="{key}")
messages = [{{"role": "user", "content": "How do I connect a worker?"}}]
for chunk in client.chat.completions.create(model="{model}", messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)

Logs of the workers: {logs}. Press Ctrl-C to finish the calls in flight and shut down.
"""


def say(text: str) -> None:
    """Print lines for the user of the command to the standard error output, not in log format."""
    print(escape_controls(text, keep=NEWLINE_AND_TAB), file=sys.stderr, flush=True)
