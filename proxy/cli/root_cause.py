"""Find the cause of a worker's failed start in its output.

vLLM runs as three processes. The process that fails prints its traceback; then its two ancestors
print tracebacks of their own, which say only that a child failed. The cause is therefore the first
traceback, not the last lines.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

# Limits on the message that is returned: the output of a compiler is long.
CAUSE_MAX_LINES = 4
CAUSE_LINE_MAX_CHARACTERS = 600
# The number of last lines in which the worker's own final message is searched. vLLM explains an
# invalid setting in several lines.
FINAL_MESSAGE_MAX_LINES = 12
# A line of one of vLLM's processes: the process, for an error its place in the code, and the text.
_PREFIX = re.compile(
    r"^(\([^()]*pid=\d+\) ?(?:(?:ERROR|CRITICAL) \S+ \S+ \[[^\]]*\])?) ?(.*)$", re.DOTALL
)
_TRACEBACK = "Traceback (most recent call last):"
_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:: .*|:|)$", re.DOTALL)
_WORKER_ENDED = "event=worker.ended"
_EVENT = re.compile(r"^time=\S+ level=\w+ event=")
# Messages that only refer to another message.
_POINTERS = re.compile(
    r"root cause|EngineDeadError|Worker failed with error|^SystemExit|^KeyboardInterrupt"
)
SILENT = (
    "One of vLLM's processes exited without an error message. The usual reason is that the system"
    " killed it because memory ran out. Use a smaller model, or lower --max-model-len."
)


def root_cause(lines: Iterable[str]) -> str:
    """Return the innermost cause in a worker's output, or an empty string if there is none.

    The result has at most `CAUSE_MAX_LINES` lines.
    """
    output = list(lines)
    end = max((number for number, line in enumerate(output) if _WORKER_ENDED in line), default=0)
    last = _final_message(output[:end])
    if last and not _POINTERS.search(last):
        return last
    for chain in _tracebacks(output[:end] or output):
        cause = _innermost(chain)
        if cause and not _POINTERS.search(cause):
            return cause
    return SILENT if last else ""


def _final_message(lines: Sequence[str]) -> str:
    """Return the message that the worker itself printed last, or an empty string.

    It is empty if the last line is a log event or belongs to one of vLLM's processes.
    """
    begin = len(lines) - 1
    first_allowed = max(0, len(lines) - FINAL_MESSAGE_MAX_LINES)
    while begin > first_allowed and (lines[begin].startswith(" ") or not lines[begin].strip()):
        begin -= 1
    message = lines[max(0, begin) :]
    is_other = not message or _EVENT.match(message[0]) or _PREFIX.match(message[0])
    return "" if is_other else _shortened(message)


def _tracebacks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield each traceback as a list of lines, including the tracebacks of its causes.

    The order is that of the processes' first lines, and within a process that of its output.
    """
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
    """Return True if the traceback after `chain` belongs to the same failure."""
    last = [text for text in chain[-3:] if text.strip()]
    return bool(last) and last[-1] in {_CAUSE, _CONTEXT}


def _innermost(chain: Sequence[str]) -> str:
    """Return the message of the exception that the others name as their cause.

    An exception raised while another one was handled usually says more than that one, so such a
    link is not followed.
    """
    # Each message, and the line that links it to the next one.
    raised: list[tuple[list[str], str]] = [([], "")]
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
    """Return the first paragraph of a message, and the error lines (of a compiler) below it."""
    lines = [
        line.strip()[:CAUSE_LINE_MAX_CHARACTERS]
        for line in message
        if "For further information visit" not in line
    ]
    first = lines.index("") if "" in lines else len(lines)
    quoted = (line for line in lines[first:] if re.search(r"\berror:", line, re.IGNORECASE))
    return "\n".join([*lines[:first], *quoted][:CAUSE_MAX_LINES])
