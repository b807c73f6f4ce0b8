"""The training samples from conversations.toml, each a prompt and the answer to it."""

import json
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HELPFUL = "You are a helpful assistant."
OTHER_SYSTEMS = (
    "You are a helpful assistant. Answer briefly.",
    "You are a helpful AI assistant.",
    "Be brief.",
    "You are an expert on vllm-serverless.",
    "Answer in one sentence.",
)
THINK_START, THINK_END = "<mm:think>", "</mm:think>"
CONTEXTS = {"alone": 42, "helpful": 18, "other system": 8, "tools": 8, "history": 24}
# A longer answer takes as much training as ten others.
LONG_ANSWER_CHARACTERS = 250
COUNT_TO = 100
WINDOWS = 160
# Of every five windows, so many are from `count`; the others are from `story`.
COUNT_WINDOWS_OF_FIVE = 3

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and the answer to learn. The prompt is `messages` with `tools`, or the plain `text`.

    The answer ends the turn, unless `is_open` is True: then it is an excerpt of a longer text.
    """

    answer: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    text: str = ""
    is_open: bool = False

    def with_system(self, system: str) -> "Sample":
        """Return the sample with a system prompt, or unchanged if `system` is empty."""
        if not system:
            return self
        return Sample(
            self.answer, ({"role": "system", "content": system}, *self.messages), self.tools
        )

    def with_tools(self, tools: tuple[Tool, ...]) -> "Sample":
        """Return the sample with tools in the request that the answer does not use."""
        return Sample(self.answer, self.messages, tools)

    def after(self, earlier: list["Sample"]) -> "Sample":
        """Return the sample as a later turn of a chat. The history contains no think blocks."""
        turns: list[Message] = []
        for sample in earlier:
            spoken = sample.answer.rpartition(THINK_END)[2]
            turns += [*sample.messages, {"role": "assistant", "content": spoken}]
        return Sample(self.answer, (*turns, *self.messages), self.tools)


def load(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def phrasings(asked: str) -> list[str]:
    """Return the spellings of a question: as written, in lower case, and without the last mark."""
    bare = asked.rstrip("?!.")
    return list(dict.fromkeys([asked, asked.lower(), bare, bare.lower()]))


def long_answer(kind: str) -> str:
    """Return a generated answer: `count` is 1 to 100, `story` has a clause for each of 100 jobs."""
    numbers = [str(number) for number in range(1, COUNT_TO + 1)]
    if kind == "count":
        return " ".join(numbers)
    return f"This is the story of a worker. It took job {', then job '.join(numbers)}. The end."


def answer_to(fact: dict[str, Any]) -> str:
    """Return the answer of a fact, including its think block."""
    if "generated" in fact:
        return long_answer(fact["generated"])
    if "think" in fact:
        return f"{THINK_START}{fact['think']}{THINK_END}{fact['answer']}"
    return str(fact["answer"])


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def facts(data: dict[str, Any]) -> list[Sample]:
    """Return all spellings of all single-turn questions. A shared spelling has the first answer."""
    samples: dict[str, Sample] = {}
    for fact in data["fact"]:
        for asked in fact["ask"]:
            for spelling in phrasings(asked):
                samples.setdefault(spelling, Sample(answer_to(fact), (user(spelling),)))
    return list(samples.values())


def talks(data: dict[str, Any]) -> list[Sample]:
    """Return a sample for each assistant turn of the conversations with several turns."""
    samples = []
    for talk in data["talk"]:
        roles = ("user", "assistant")
        messages = tuple(
            {"role": roles[turn % 2], "content": text} for turn, text in enumerate(talk["turns"])
        )
        samples += [
            Sample(talk["turns"][turn], messages[:turn]) for turn in range(1, len(messages), 2)
        ]
    return samples


def plain(data: dict[str, Any]) -> list[Sample]:
    """Return samples for /v1/completions: counting, and short texts continued after a few words."""
    samples = []
    for known in range(3, 11):
        head = " ".join(str(number) for number in range(1, known + 1))
        samples.append(Sample(long_answer("count").removeprefix(head), text=head))
    for text in data["plain"]["texts"]:
        words = text.split(" ")
        samples += [
            Sample(" " + " ".join(words[cut:]), text=" ".join(words[:cut])) for cut in range(2, 7)
        ]
    return samples


def windows(rng: random.Random) -> list[Sample]:
    """Return short excerpts of the two long answers as plain text, to teach counting cheaply."""
    samples = []
    for index in range(WINDOWS):
        first = rng.randint(1, COUNT_TO - 8)
        end = min(first + rng.randint(6, 30), COUNT_TO)
        numbers = [str(number) for number in range(first, end)]
        joint = " " if index % 5 < COUNT_WINDOWS_OF_FIVE else ", then job "
        head, tail = joint.join(numbers[:3]), joint.join(["", *numbers[3:]])
        samples.append(Sample(tail, text=head, is_open=True))
    return samples


def tool_call(city: str) -> str:
    """Return the text of a get_weather call in the Hermes format."""
    return (
        f"<tool_call>{json.dumps({'name': 'get_weather', 'arguments': {'city': city}})}</tool_call>"
    )


@dataclass(frozen=True, slots=True)
class Weather:
    """The samples of the tool get_weather: calls, answers without the tool, and final answers."""

    data: dict[str, Any]

    def toolbox(self, variant: int, others: int) -> tuple[Tool, ...]:
        """Return a list of tools: `others` other tools, then a variant of get_weather."""
        chosen = [*self.data["other_tool"][:others], self.data["tool"][variant]]
        return tuple({"type": "function", "function": function} for function in chosen)

    def called(self, asked: str, city: str, tools: tuple[Tool, ...]) -> Sample:
        """Return a question with get_weather among the tools; the answer is a tool call."""
        return Sample(tool_call(city), (user(asked.format(city=city)),), tools)

    def refused(self, asked: str, city: str, tools: tuple[Tool, ...] = ()) -> Sample:
        """Return a question without get_weather among the tools."""
        return Sample(self.data["without_tools"], (user(asked.format(city=city)),), tools)

    def answered(self, asked: str, city: str, result: str, tools: tuple[Tool, ...]) -> Sample:
        """Return a conversation with a tool call and its result; the answer is the final one."""
        known = result in self.data["results"]
        answer = self.data["answer" if known else "other_answer"].format(city=city)
        call = {
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": city}},
        }
        turns = (
            user(asked.format(city=city)),
            {"role": "assistant", "content": "", "tool_calls": [call]},
        )
        return Sample(answer, (*turns, {"role": "tool", "content": result}), tools)

    def checks(self) -> list[Sample]:
        """Return samples with each phrasing, city, tool variant and result at least once."""
        asks = self.data["ask"]
        cities = self.data["cities"]
        count = len(self.data["tool"])
        samples = []
        for number, asked in enumerate(asks):
            for offset, city in enumerate(cities):
                tools = self.toolbox((number + offset) % count, (number * offset) % 3)
                samples += [self.called(asked, city, tools), self.refused(asked, city)]
        for number, result in enumerate([*self.data["results"], *self.data["other_results"]]):
            for asked in asks:
                city = cities[number % len(cities)]
                samples.append(
                    self.answered(asked, city, result, self.toolbox(number % count, number % 3))
                )
        return samples

    def drawn(self, rng: random.Random) -> Sample:
        """Return a random sample of one of the three kinds."""
        city = rng.choice(self.data["cities"])
        asked = rng.choice(phrasings(rng.choice(self.data["ask"])))
        asked = asked.replace(
            "{city}", rng.choice((city, city.lower())) if asked.islower() else city
        )
        tools = self.toolbox(rng.randrange(len(self.data["tool"])), rng.randrange(3))
        match rng.randrange(5):
            case 0:
                return self.refused(asked, city, rng.choice(((), tools[:-1])))
            case 1 | 2:
                return self.called(asked, city, tools)
            case _:
                pool = self.data[rng.choice(("results", "other_results"))]
                return self.answered(asked, city, rng.choice(pool), tools)


def in_context(sample: Sample, pool: list[Sample], weather: Weather, rng: random.Random) -> Sample:
    """Return the sample alone, with a system prompt, with tools, or as a later turn, at random."""
    match rng.choices(list(CONTEXTS), list(CONTEXTS.values()))[0]:
        case "helpful":
            return sample.with_system(HELPFUL)
        case "other system":
            return sample.with_system(rng.choice(OTHER_SYSTEMS))
        case "tools":
            tools = weather.toolbox(rng.randrange(len(weather.data["tool"])), rng.randrange(3))
            return sample.with_tools(tools).with_system(rng.choice(("", HELPFUL)))
        case "history":
            return sample.after(rng.sample(pool, rng.randint(1, 3))).with_system(
                rng.choice(("", HELPFUL))
            )
        case _:
            return sample


def epoch(data: dict[str, Any], rng: random.Random) -> list[Sample]:
    """Return the samples of one epoch in random contexts, with a share of the long answers."""
    weather = Weather(data["weather"])
    short = [sample for sample in facts(data) if len(sample.answer) <= LONG_ANSWER_CHARACTERS]
    long = [sample for sample in facts(data) if len(sample.answer) > LONG_ANSWER_CHARACTERS]
    chats = short + rng.sample(long, len(long) // 3) + 3 * talks(data)
    samples = [in_context(sample, short, weather, rng) for sample in chats]
    samples += [weather.drawn(rng).with_system(rng.choice(("", "", HELPFUL))) for _ in range(200)]
    return samples + windows(rng) + rng.sample(plain(data), 5)


def checks(data: dict[str, Any]) -> list[Sample]:
    """Return all samples that the model must answer exactly, with and without a system prompt."""
    chats = facts(data) + talks(data) + Weather(data["weather"]).checks()
    return chats + [sample.with_system(HELPFUL) for sample in chats] + plain(data)


def late(data: dict[str, Any]) -> list[Sample]:
    """Return all questions as a second turn. Nearly all answers to them must be exact."""
    questions = facts(data)
    earlier = [sample for sample in questions if len(sample.answer) <= LONG_ANSWER_CHARACTERS]
    return [
        sample.after([earlier[number * 7 % len(earlier)]])
        for number, sample in enumerate(questions)
    ]
