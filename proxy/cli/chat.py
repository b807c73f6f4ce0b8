"""`chat`: talk with a model in the terminal, through the openai package and any base URL."""

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
HELP = "Enter sends. Ctrl-C stops an answer, or ends the chat. /clear forgets the conversation, /exit ends it."


@dataclass
class Conversation:
    """What has been said. A question whose answer was stopped stays, with as much of the answer as came."""

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self, question: str) -> list[dict[str, str]]:
        """What to send: the system's words, all turns, the new question."""
        begin = [{"role": "system", "content": self.system}] if self.system else []
        return [*begin, *self.turns, {"role": "user", "content": _encodable(question)}]

    def note(self, question: str, answer: str) -> None:
        """Remember a turn."""
        said = {"user": question, "assistant": answer}
        self.turns += [{"role": role, "content": _encodable(text)} for role, text in said.items()]


def run(base_url: str, model: str | None, api_key: str, system: str | None) -> int:
    """Chat until the person ends it. Gives the exit status."""
    console = Console(highlight=False, markup=False, emoji=False)  # what is printed is foreign text
    try:
        import openai  # noqa: PLC0415 - only this command needs it
    except ImportError:
        console.print("`chat` needs the openai package: pip install 'vllm-serverless[chat]'")
        return EX_CONFIG
    client = openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0)
    try:
        name = model or client.models.list().data[0].id
    except IndexError:
        console.print(f"{base_url} serves no model yet. Name one with --model.")
        return EX_UNAVAILABLE
    except openai.OpenAIError as error:
        console.print(f"{base_url}: {_why(error)}")
        return EX_UNAVAILABLE
    console.print(f"{escape_controls(name)} at {base_url}. {HELP}", style="dim")
    conversation = Conversation(system)
    for question in _questions():
        if question == "/clear":
            conversation.turns.clear()
            continue
        answer = ""
        began = time.monotonic()
        tokens = 0
        try:
            for piece, count in _pieces(client, name, conversation.messages(question)):
                answer += piece
                tokens = count or tokens
                shown = escape_controls(piece, keep=NEWLINE_AND_TAB)
                console.print(shown, end="", soft_wrap=True)
            seconds = time.monotonic() - began
            console.print(f"\n{tokens} tokens, {tokens / seconds:.0f} a second", style="dim")
        except KeyboardInterrupt:
            console.print("\nstopped", style="dim")
        except openai.OpenAIError as error:
            console.print(f"\n{_why(error)}", style="red")
            continue
        conversation.note(question, answer)
    return 0


def _encodable(text: str) -> str:
    """Return `text` with halves of characters joined, and lone ones replaced: those cannot be sent."""
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
    """The answer's text as it comes, and at the end the number of its tokens. Leaving early closes the stream."""
    with client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            text = chunk.choices[0].delta.content if chunk.choices else None
            yield text or "", chunk.usage.completion_tokens if chunk.usage else 0


def _why(error: Exception) -> str:
    """An error in a line, with the server's own words where it has said some."""
    body = getattr(error, "body", None)
    text = str(body.get("message") or error) if isinstance(body, dict) else str(error)
    return escape_controls(text)
