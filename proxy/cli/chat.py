"""The command `chat`: chat with a model in the terminal, at any OpenAI-compatible base URL."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from proxy.wire.escaping import NEWLINE_AND_TAB, escape_controls

if TYPE_CHECKING:
    from openai import OpenAI

EX_UNAVAILABLE = 69
EX_CONFIG = 78
HELP = (
    "Press Enter to send, Ctrl-C to stop an answer or to quit."
    " /clear starts a new conversation, /exit quits."
)


@dataclass
class Conversation:
    """The messages so far. If the user stops an answer, the part that has arrived is kept."""

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self, question: str) -> list[dict[str, str]]:
        """Return the messages of the next request: system prompt, all turns, the new question."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns, {"role": "user", "content": _encodable(question)}]

    def add_turn(self, question: str, answer: str) -> None:
        turn = {"user": question, "assistant": answer}
        self.turns += [{"role": role, "content": _encodable(text)} for role, text in turn.items()]


def run(base_url: str, model: str | None, api_key: str, system: str | None) -> int:
    """Chat until the user quits; return the exit status. `model` None is the first one served."""
    # The console prints untrusted text, so markup and emoji codes are off.
    console = Console(highlight=False, markup=False, emoji=False)
    try:
        import openai  # noqa: PLC0415 - only this command needs it
    except ImportError:
        console.print(
            "The openai package is not installed, and `chat` requires it: pip install openai"
        )
        return EX_CONFIG
    client = openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0)
    try:
        name = model or client.models.list().data[0].id
    except IndexError:
        console.print(
            f"{base_url} lists no models. Start a worker, or select a model with --model."
        )
        return EX_UNAVAILABLE
    except openai.OpenAIError as error:
        console.print(f"{base_url}: {_error_text(error)}")
        return EX_UNAVAILABLE
    console.print(f"{escape_controls(name)} at {base_url}. {HELP}", style="dim")
    conversation = Conversation(system)
    for question in _questions():
        if question == "/clear":
            conversation.turns.clear()
            continue
        answer = ""
        started = time.monotonic()
        tokens = 0
        try:
            for piece, count in _pieces(client, name, conversation.messages(question)):
                answer += piece
                tokens = count or tokens
                shown = escape_controls(piece, keep=NEWLINE_AND_TAB)
                console.print(shown, end="", soft_wrap=True)
            seconds = time.monotonic() - started
            console.print(f"\n{tokens} tokens, {tokens / seconds:.0f} tokens/s", style="dim")
        except KeyboardInterrupt:
            console.print("\nAnswer stopped.", style="dim")
        except openai.OpenAIError as error:
            console.print(f"\n{_error_text(error)}", style="red")
            continue
        conversation.add_turn(question, answer)
    return 0


def _encodable(text: str) -> str:
    """Return `text` with surrogate pairs joined and lone surrogates replaced; UTF-8 has neither."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _questions() -> Iterator[str]:
    while True:
        try:
            question = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stdout)
            return
        if question == "/exit":
            return
        if question:
            yield question


def _pieces(client: "OpenAI", model: str, messages: list[Any]) -> Iterator[tuple[str, int]]:
    """Yield the pieces of the answer, each with the total number of tokens or 0.

    The last piece has the number of tokens. Closing the generator early closes the stream.
    """
    with client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            text = chunk.choices[0].delta.content if chunk.choices else None
            yield text or "", chunk.usage.completion_tokens if chunk.usage else 0


def _error_text(error: Exception) -> str:
    """Return the message of the server if there is one, else the text of the error; escaped."""
    body = getattr(error, "body", None)
    text = str(body.get("message") or error) if isinstance(body, dict) else str(error)
    return escape_controls(text)
