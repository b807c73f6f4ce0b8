"""The formats of native outputs, and the metrics of their streams."""

import json
import time
from typing import Any

import pytest

from tests.unit.worker.support import AppEngine, app_of
from worker_vllm.engine.base import Reading, reading_of
from worker_vllm.handler import InputFailedError, RunLostError, answer_input
from worker_vllm.inputs.gauges import Gauges, metrics
from worker_vllm.inputs.rendering import Output, Steps
from worker_vllm.settings import OutputFormat

STREAM = {"prompt": "hi", "stream": True}
WHOLE = {"prompt": "hi"}
END = b"data: [DONE]\n\n"


def event(**fields: Any) -> bytes:
    """Return an event of a stream."""
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(said: str, outputs: int | None = None, index: int = 0) -> bytes:
    """Return a step of a completion, with the number of tokens so far if the engine reports it."""
    usage = None if outputs is None else {"prompt_tokens": 7, "completion_tokens": outputs}
    return event(choices=[{"index": index, "text": said}], usage=usage)


async def outputs(
    engine: AppEngine, value: Any, form: OutputFormat = "seed"
) -> tuple[list[Output], InputFailedError | RunLostError | None]:
    """Return the outputs of an input, and the exception that ended them."""
    found: list[Output] = []
    try:
        async for output in answer_input(
            engine, Gauges(engine.read, time.monotonic), json.dumps(value).encode(), "demo", form
        ):
            found.append(output)  # noqa: PERF401 - the outputs before the exception count
    except (InputFailedError, RunLostError) as error:
        return found, error
    return found, None


def values(found: list[Output]) -> list[Any]:
    return [json.loads(output.value) for output in found]


async def test_a_whole_output_has_the_format_of_the_seed() -> None:
    answer = {
        "choices": [{"text": "Hello!"}],
        "usage": {"prompt_tokens": 22, "completion_tokens": 16},
    }
    engine = AppEngine(app_of(json.dumps(answer).encode(), content_type="application/json"))
    found, error = await outputs(engine, WHOLE)
    assert error is None
    assert values(found) == [{"text": ["Hello!"], "input_tokens": 22, "output_tokens": 16}]
    assert found[0].is_whole


async def test_the_reasoning_of_a_chat_is_part_of_its_output() -> None:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "reasoning": "hm",
        "tool_calls": [],
    }
    answer = {
        "choices": [{"message": message}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    engine = AppEngine(app_of(json.dumps(answer).encode(), content_type="application/json"))
    found, _ = await outputs(engine, {"messages": []})
    assert values(found) == [
        {"text": [""], "reasoning": ["hm"], "input_tokens": 1, "output_tokens": 2}
    ]


async def test_a_stream_has_one_element_per_step_and_they_add_up() -> None:
    end = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 3})
    engine = AppEngine(app_of(text("a", 1) + text("b", 2), text("", 2), text("c", 3), end, END))
    found, error = await outputs(engine, STREAM)
    assert error is None
    assert values(found) == [
        {"text": ["a"], "input_tokens": 7, "output_tokens": 1},
        {"text": ["b"], "input_tokens": 0, "output_tokens": 1},
        {"text": ["c"], "input_tokens": 0, "output_tokens": 1},
    ]
    assert [json.loads(output.metrics)["stream_index"] for output in found] == [0, 1, 2]


async def test_a_usage_at_the_end_of_a_stream_is_reported_at_the_end() -> None:
    end = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2})
    found, _ = await outputs(AppEngine(app_of(text("a"), text("b"), end, END)), STREAM)
    assert [(value["input_tokens"], value["output_tokens"]) for value in values(found)] == [
        (0, 0),
        (0, 0),
        (7, 2),
    ]
    assert values(found)[-1]["text"] == [""]


async def test_texts_of_several_choices_are_at_their_indices() -> None:
    both = app_of(text("a", 1, 0) + text("b", 1, 1) + text("c", 2, 0), END)
    found, _ = await outputs(AppEngine(both), STREAM | {"sampling_params": {"n": 2}})
    assert [value["text"] for value in values(found)] == [["a", ""], ["", "b"], ["c", ""]]
    assert sum(value["output_tokens"] for value in values(found)) == 3
    assert sum(value["input_tokens"] for value in values(found)) == 7


def test_the_first_event_of_a_chat_has_no_element_but_its_usage_counts() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 0}
    steps = Steps(1)
    assert (
        steps.feed(
            event(
                choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}], usage=usage
            )
        )
        == []
    )
    [step] = steps.feed(
        event(
            choices=[{"index": 0, "delta": {"content": "x"}}],
            usage=usage | {"completion_tokens": 1},
        )
    )
    assert step.output() == {"text": ["x"], "input_tokens": 9, "output_tokens": 1}


def test_events_may_be_split_anywhere() -> None:
    stream = text("ä", 1) + text("b", 2).replace(b"\n\n", b"\r\n\r\n")
    steps = Steps(1)
    found = [
        step.text for index in range(len(stream)) for step in steps.feed(stream[index : index + 1])
    ]
    assert found == [["ä"], ["b"]]


REFUSED = (
    b'{"error": {"message": "temperature must be non-negative, got -1.0.", '
    b'"type": "BadRequestError", "code": 400}}'
)


@pytest.mark.parametrize("value", [WHOLE, STREAM, {"route": "/v1/completions", "body": {"x": 1}}])
async def test_a_rejection_of_the_engine_is_reported_with_its_message(value: Any) -> None:
    found, error = await outputs(
        AppEngine(app_of(REFUSED, status=400, content_type="application/json")), value
    )
    assert found == []
    assert isinstance(error, InputFailedError)
    assert (error.code, error.status) == ("http_400", 400)
    assert error.body == (REFUSED.decode() if "route" in value else "")
    assert str(error) == "temperature must be non-negative, got -1.0."


async def test_an_invalid_input_never_reaches_the_engine() -> None:
    found, error = await outputs(
        AppEngine(app_of(b"secret")), {"prompt": 1, "sampling_params": {"tempo": 1}}
    )
    assert found == []
    assert isinstance(error, InputFailedError)
    assert (error.code, error.status) == ("bad_input", 400)


@pytest.mark.parametrize("route", ["/sleep", "/metrics", "/v1/load_lora_adapter", "/docs"])
async def test_an_input_cannot_reach_admin_routes(route: str) -> None:
    found, error = await outputs(AppEngine(app_of(b'"secret"')), {"route": route, "body": {"x": 1}})
    assert found == []
    assert isinstance(error, InputFailedError)
    assert error.status == 404


async def test_an_error_event_fails_the_job_with_the_engines_message() -> None:
    broken = event(error={"message": "EngineCore encountered an issue.", "code": 500})
    found, error = await outputs(AppEngine(app_of(text("a", 1), broken, END)), STREAM)
    assert len(found) == 1
    assert isinstance(error, InputFailedError)
    assert str(error) == "EngineCore encountered an issue."


async def test_an_incomplete_response_is_lost() -> None:
    _, error = await outputs(AppEngine(app_of(text("a", 1), whole=False)), STREAM)
    assert isinstance(error, RunLostError)


async def test_the_formats_of_the_image() -> None:
    body = b'{"choices": [{"text":  "kept as it is"}]}'
    found, _ = await outputs(
        AppEngine(app_of(body, content_type="application/json")), WHOLE, "worker-vllm"
    )
    assert [(output.value, output.is_whole) for output in found] == [(body, False)]
    stream = text("a", 1) + "data: é\n\n".encode()
    found, _ = await outputs(
        AppEngine(app_of(stream[:-4], stream[-4:], END)), STREAM, "worker-vllm"
    )
    assert "".join(values(found)) == stream.decode() + END.decode()


@pytest.mark.parametrize(
    ("body", "value"), [(b"", None), (b"plain", "plain"), (b"\xff", "�"), (b"[1]", [1])]
)
async def test_any_response_becomes_json(body: bytes, value: Any) -> None:
    found, _ = await outputs(
        AppEngine(app_of(body, content_type="text/plain")), {"route": "/health"}
    )
    assert values(found) == [value]


async def test_throughput_is_tokens_over_time() -> None:
    readings = iter(
        [
            Reading(0, 0, 0.0, 100, 1000),
            Reading(2, 1, 0.5, 140, 1100),
            Reading(1, 0, 0.25, 140, 1400),
        ]
    )
    now = [10.0]

    async def read() -> Reading:
        return next(readings)

    gauges = Gauges(read, lambda: now[0])
    await gauges.begin()
    now[0] += 0.25
    shown = metrics(await gauges.load(), 2, 0, 1)
    assert shown == {
        "avg_gen_throughput": 400.0,
        "avg_prompt_throughput": 160.0,
        "cpu_kv_cache_usage": 0,
        "gpu_kv_cache_usage": 0.5,
        "input_tokens": 0,
        "output_tokens": 1,
        "pending": 1,
        "running": 2,
        "scenario": "stream",
        "stream_index": 2,
        "swapped": 0,
    }
    now[0] += 0.4
    assert metrics(await gauges.load(), 3, 0, 1)["avg_gen_throughput"] == 400.0
    now[0] += 0.2
    assert metrics(await gauges.load(), 4, 0, 1)["avg_gen_throughput"] == 500.0


async def test_a_value_that_the_engine_does_not_report_is_null() -> None:
    engine = AppEngine(app_of(text("a", 1), END))
    found, _ = await outputs(engine, STREAM)
    assert json.loads(found[0].metrics)["running"] is None
    assert reading_of([("sglang:num_running_reqs", 1.0)]) is None
