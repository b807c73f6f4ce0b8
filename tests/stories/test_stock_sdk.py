"""The worker under the stock Runpod SDK: the same handler, driven by `runpod.serverless.start` and its local modes."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from harness.environments import python as python_of
from harness.plane import Plane, plane
from harness.proxy import CHAT
from harness.waiting import until
from harness.worker import WorkerProcess, environment, worker_process

ROUTE = "/v1/completions"


@pytest.fixture(scope="module")
def python() -> str:
    """The Python that has the SDK."""
    return python_of(".venv-sdk")


@pytest_asyncio.fixture(scope="module")
async def platform() -> AsyncIterator[Plane]:
    async with plane() as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def stock(platform: Plane, python: str) -> AsyncIterator[WorkerProcess]:
    """A worker that takes its jobs through the SDK, eight at a time."""
    told = environment(environment=platform.environment(), max_concurrency=8)
    async with worker_process(told=told, python=python) as running:
        await until(lambda: any("engine.ready" in line for line in running.lines), 60, "the engine is ready")
        yield running


def prompt(text: str = "hello", **params: Any) -> dict[str, Any]:
    """A native input for the scripted engine: three tokens, unless the parameters say otherwise."""
    return {"prompt": text, "sampling_params": {"max_tokens": 3} | params}


async def test_a_prompt_is_answered_in_the_seeds_shape(stock: WorkerProcess, platform: Plane) -> None:
    platform.submit("native", prompt("hi"))
    assert await platform.result("native") == {
        "output": [{"text": ["hi 0 hi 1 hi 2 "], "input_tokens": 1, "output_tokens": 3}]
    }


async def test_messages_stream_one_element_a_token_with_true_metrics(stock: WorkerProcess, platform: Plane) -> None:
    messages = [{"role": "user", "content": "two words"}]
    params = {"max_tokens": 40, "seed": 20_000}
    platform.submit("stream", {"messages": messages, "sampling_params": params, "stream": True})
    result = await platform.result("stream")
    assert result["output"] == platform.chunks["stream"]
    steps = [step for step in result["output"] if step["output_tokens"]]
    assert "".join(step["text"][0] for step in result["output"]) == "".join(f"two words {n} " for n in range(40))
    assert sum(step["output_tokens"] for step in result["output"]) == 40
    assert sum(step["input_tokens"] for step in result["output"]) == 2
    shown = [step["metrics"] for step in steps]
    assert [one["stream_index"] for one in shown] == list(range(len(shown)))
    assert {(one["running"], one["pending"], one["scenario"]) for one in shown} == {(1, 0, "stream")}
    assert 20 < shown[-1]["avg_gen_throughput"] < 80  # 50 tokens a second were asked for


async def test_openai_passthrough_whole_and_streamed(stock: WorkerProcess, platform: Plane) -> None:
    body = {"messages": [{"role": "user", "content": "hé"}], "max_tokens": 3}
    platform.submit("whole", {"openai_route": CHAT, "openai_input": body})
    platform.submit("events", {"openai_route": CHAT, "openai_input": body | {"stream": True}})
    platform.submit("models", {"openai_route": "/v1/models"})
    platform.submit("generic", {"route": "/tokenize", "body": {"prompt": "x"}})
    [whole] = (await platform.result("whole"))["output"]
    assert whole["choices"][0]["message"]["content"] == "hé 0 hé 1 hé 2 "
    events = "".join((await platform.result("events"))["output"]).split("\n\n")
    assert events[-2] == "data: [DONE]"
    assert json.loads(events[1].removeprefix("data: "))["choices"][0]["delta"]["content"] == "hé 0 "
    assert (await platform.result("models"))["output"][0]["data"][0]["id"] == "scripted"
    assert (await platform.result("generic"))["output"][0]["count"] == 1


FAILURES = [
    (prompt(tempereture=1), "sampling_params.tempereture: unknown; did you mean temperature?"),
    (prompt(max_tokens=-1), "max_tokens: Input should be a valid integer, got -1"),
    ({"promt": "x"}, "input must be an object with `openai_route`, `route`, `prompt` or `messages`"),
    ([1, 2], "input must be an object with `openai_route`, `route`, `prompt` or `messages`"),
]


@pytest.mark.parametrize(("value", "sentence"), FAILURES)
async def test_a_bad_input_fails_with_a_sentence_that_names_it(
    stock: WorkerProcess, platform: Plane, value: Any, sentence: str
) -> None:
    job = f"bad-{abs(hash(sentence))}-{type(value).__name__}"
    platform.submit(job, value)
    assert await platform.result(job) == {"error": sentence}


async def test_the_status_of_a_route_that_was_named_can_be_read_from_the_error(
    stock: WorkerProcess, platform: Plane
) -> None:
    platform.submit("refused", {"openai_route": ROUTE, "openai_input": {"prompt": "x", "max_tokens": "many"}})
    platform.submit("admin", {"route": "/sleep", "method": "POST"})
    error = (await platform.result("refused"))["error"]
    assert re.search(r"'message': 'vLLM returned HTTP 400: \{\"error\"", error), error
    assert "vLLM returned HTTP 404" in (await platform.result("admin"))["error"]


async def test_an_engine_error_in_a_stream_fails_the_job(stock: WorkerProcess, platform: Plane) -> None:
    body = {"prompt": "x", "stream": True, "fault": "error_event:1", "max_tokens": 3}
    platform.submit("broken", {"openai_route": ROUTE, "openai_input": body})
    assert "error" in await platform.result("broken")


async def test_as_many_jobs_at_once_as_there_are_slots(stock: WorkerProcess, platform: Plane) -> None:
    began = len(platform.taken)
    for number in range(8):
        platform.submit(f"many-{number}", prompt(max_tokens=20, seed=150_000))
    await until(lambda: len(platform.taken) == began + 8, what="all are taken before the first ends")
    assert not any(f"many-{number}" in platform.results for number in range(8))
    for number in range(8):
        assert (await platform.result(f"many-{number}"))["output"][0]["output_tokens"] == 20


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stopped_job_frees_the_engine(stock: WorkerProcess, platform: Plane, stream: bool) -> None:
    job = f"stopped-{stream}"
    platform.submit(job, prompt(max_tokens=100_000, seed=5_000) | {"stream": stream})
    async with aiohttp.ClientSession() as http:
        await until(lambda: _runs(stock, http, 1), what="the engine works")
        platform.stops.put_nowait(job)
        await until(lambda: _runs(stock, http, 0), 3.0, "it is idle again")
    assert job not in platform.results


async def test_a_job_stopped_while_its_chunk_is_under_way_frees_the_engine(
    stock: WorkerProcess, platform: Plane
) -> None:
    platform.takes_chunks.clear()
    platform.submit("held", prompt(max_tokens=100_000, seed=5_000) | {"stream": True})
    async with aiohttp.ClientSession() as http:
        await until(lambda: len(platform.chunks["held"]) == 1, what="a chunk is under way")
        platform.stops.put_nowait("held")
        await until(lambda: _runs(stock, http, 0), 3.0, "the engine is idle")
    platform.takes_chunks.set()


async def _runs(stock: WorkerProcess, http: aiohttp.ClientSession, wanted: int) -> bool:
    return await stock.metric(http, "num_requests_running") == wanted


async def test_the_pings_name_the_job(stock: WorkerProcess, platform: Plane) -> None:
    platform.submit("pinged", prompt(max_tokens=30, seed=100_000))
    await until(lambda: "pinged" in platform.pings, what="a ping says that the job is in progress")
    await platform.result("pinged")


async def test_a_drained_worker_posts_its_last_job_and_exits(python: str) -> None:
    async with plane() as platform:
        told = environment(environment=platform.environment())
        async with worker_process(told=told, python=python) as running:
            platform.submit("last", prompt(max_tokens=10, seed=100_000))
            await until(lambda: "last" in platform.taken, 60, "the job is taken")
            running.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(running.process.wait(), 20) == 0
        assert (await platform.result("last"))["output"][0]["output_tokens"] == 10


async def test_a_dead_engine_ends_the_process_and_leaves_its_jobs_to_others(python: str) -> None:
    async with plane() as platform:
        told = environment(environment=platform.environment(), max_concurrency=4)
        async with worker_process(told=told, python=python) as running:
            platform.submit("held", prompt(max_tokens=1000, seed=100_000))
            await until(lambda: "held" in platform.taken, 60, "the job is taken")
            body = {"prompt": "x", "stream": True, "fault": "engine_dead:0"}
            platform.submit("dead", {"openai_route": ROUTE, "openai_input": body})
            assert await asyncio.wait_for(running.process.wait(), 20) == 70
        assert platform.results == {}


OUTPUT_FORMATS = [
    ({}, {"text": ["x 0 x 1 x 2 "], "input_tokens": 1, "output_tokens": 3}),
    ({"OUTPUT_FORMAT": "worker-vllm"}, "text_completion"),
]


@pytest.mark.parametrize(("more", "wanted"), OUTPUT_FORMATS, ids=["seed", "worker-vllm"])
async def test_one_job_from_the_command_line(python: str, more: dict[str, str], wanted: Any) -> None:
    status, said = await _local(python, json.dumps({"input": prompt("x")}), more)
    assert status == 0, said
    assert str(wanted) in said


async def test_one_bad_job_from_the_command_line(python: str) -> None:
    status, said = await _local(python, json.dumps({"input": prompt(nonsense=1)}), {})
    assert status == 1
    assert "sampling_params.nonsense: unknown" in said


async def _local(python: str, value: str, more: dict[str, str]) -> tuple[int | None, str]:
    async with worker_process("--test_input", value, told=environment(environment=more), python=python) as running:
        await asyncio.wait_for(running.process.wait(), 60)
        await until(lambda: any("worker.ended" in line for line in running.lines), what="all is read")
        return running.process.returncode, "\n".join(running.lines)


async def test_the_sdks_local_api(python: str) -> None:
    port = str(20_000 + os.getpid() % 20_000)
    flags = ("--rp_serve_api", "--rp_api_port", port)
    async with worker_process(*flags, told=environment(), python=python), aiohttp.ClientSession() as http:
        url = f"http://localhost:{port}"
        await until(lambda: _answers(http.get(url)), 60, "the API is up")
        async with http.post(f"{url}/runsync", json={"input": prompt("x")}) as response:
            assert (await response.json())["output"] == [
                {"text": ["x 0 x 1 x 2 "], "input_tokens": 1, "output_tokens": 3}
            ]
        async with http.post(f"{url}/run", json={"input": prompt("x") | {"stream": True}}) as response:
            job = (await response.json())["id"]
        async with http.post(f"{url}/stream/{job}") as response:
            steps = (await response.json())["stream"]
    assert "".join(step["output"]["text"][0] for step in steps) == "x 0 x 1 x 2 "


async def _answers(asking: Awaitable[aiohttp.ClientResponse]) -> bool:
    try:
        (await asking).close()
    except aiohttp.ClientError:
        return False
    return True


async def test_without_the_sdk_the_worker_says_what_to_install() -> None:
    async with plane() as platform:
        told = environment(environment=platform.environment())
        async with worker_process(told=told) as running:
            assert await asyncio.wait_for(running.process.wait(), 30) == 1
            await until(lambda: any("pip install" in line for line in running.lines), what="the mend is said")
