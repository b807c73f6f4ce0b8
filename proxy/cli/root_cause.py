"""Find why a worker did not start in what it printed. Pure.

vLLM runs as three processes. The one that fails prints its traceback; the two above it then print tracebacks of their
own, which only say that something failed below. So the cause is the first traceback, not the last lines.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

MOST_LINES = 4  # of one exception's message: a compiler's output is long
MOST_CHARACTERS = 600  # of one line
MOST_SAID = 12  # lines that a worker itself ends with: vLLM's settings explain what is wrong with them in several
# A line of one of vLLM's processes: the process, and for an error its place in the code; then the text.
_PREFIX = re.compile(
    r"^(\([^()]*pid=\d+\) ?(?:(?:ERROR|CRITICAL) \S+ \S+ \[[^\]]*\])?) ?(.*)$", re.DOTALL
)
_TRACEBACK = "Traceback (most recent call last):"
_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:: .*|:|)$", re.DOTALL)
_ENDED = "event=worker.ended"
_EVENT = re.compile(r"^time=\S+ level=\w+ event=")
# Messages that say only where to look for another one.
_POINTERS = re.compile(
    r"root cause|EngineDeadError|Worker failed with error|^SystemExit|^KeyboardInterrupt"
)
SILENT = "One of vLLM's processes ended without an error message; as a rule it is killed when memory runs out."


def root_cause(lines: Iterable[str]) -> str:
    """Return the innermost cause that a worker's output names, in at most `MOST_LINES` lines; empty without one."""
    shown = list(lines)
    end = max((number for number, line in enumerate(shown) if _ENDED in line), default=0)
    last = _last_words(shown[:end])
    if last and not _POINTERS.search(last):
        return last
    for chain in _tracebacks(shown[:end] or shown):
        cause = _innermost(chain)
        if cause and not _POINTERS.search(cause):
            return cause
    return SILENT if last else ""


def _last_words(lines: Sequence[str]) -> str:
    """Return the message that the worker itself ended with, if the lines end with one."""
    begin = len(lines) - 1
    while begin > max(0, len(lines) - MOST_SAID) and (
        lines[begin].startswith(" ") or not lines[begin].strip()
    ):
        begin -= 1
    said = lines[max(0, begin) :]
    is_another = not said or _EVENT.match(said[0]) or _PREFIX.match(said[0])
    return "" if is_another else _shortened(said)


def _tracebacks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield each traceback together with those that Python printed for its causes, in order; one process at a time."""
    processes: dict[str, list[str]] = {}
    for line in lines:
        found = _PREFIX.match(line)
        name, text = (found[1], found[2]) if found else ("", line)
        processes.setdefault(name, []).append(text)
    for texts in processes.values():
        chain: list[str] = []
        for text in texts:
            begins = text == _TRACEBACK
            is_over = _EVENT.match(text) or (begins and not _is_linked(chain))
            if chain and is_over:
                yield chain
                chain = []
            if begins or chain:
                chain.append(text)
        if chain:
            yield chain


def _is_linked(chain: Sequence[str]) -> bool:
    """Whether the traceback that comes next belongs to the same failure."""
    said = [text for text in chain[-3:] if text.strip()]
    return bool(said) and said[-1] in {_CAUSE, _CONTEXT}


def _innermost(chain: Sequence[str]) -> str:
    """Return the exception that the others name as their cause.

    One raised while another was handled is meant to say more than that one, so it is not followed further.
    """
    raised: list[tuple[list[str], str]] = [([], "")]  # each message, and what links it to the next
    for text in chain:
        if text in {_CAUSE, _CONTEXT}:
            raised[-1] = (raised[-1][0], text)
            raised.append(([], ""))
        elif text.startswith(" ") or text == _TRACEBACK:
            continue
        elif raised[-1][0] or _EXCEPTION.match(text):
            raised[-1][0].append(text)
    while len(raised) > 1 and (raised[-2][1] == _CAUSE or not raised[-1][0]):
        raised.pop()
    return _shortened(raised[-1][0])


def _shortened(message: Sequence[str]) -> str:
    """Return the first paragraph of a message, and what it quotes as an error further down (a compiler's, say)."""
    lines = [
        line.strip()[:MOST_CHARACTERS]
        for line in message
        if "For further information visit" not in line
    ]
    first = lines.index("") if "" in lines else len(lines)
    quoted = (line for line in lines[first:] if re.search(r"\berror:", line, re.IGNORECASE))
    return "\n".join([*lines[:first], *quoted][:MOST_LINES])
