"""Our worker under the stock Runpod SDK.

The same handler is driven by `runpod.serverless.start` and its local modes.
"""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from harness.proxy.queue_api import QueueClient, prompt
from harness.proxy.server import CHAT, Proxy
from harness.runpod.sdk_worker import SDKS_OF_TORTURE, stock_proxy
from harness.tools.environments import python as python_of
from harness.tools.ports import free_port
from harness.tools.waiting import until
from harness.worker.process import WorkerProcess, environment, worker_process

from proxy.cli import stock_worker

ROUTE = "/v1/completions"


@pytest.fixture(scope="module", params=SDKS_OF_TORTURE)
def python(request: pytest.FixtureRequest) -> str:
    """Return the Python that has the SDK."""
    return python_of(request.param)


@asynccontextmanager
async def working(proxy: Proxy, python: str, **more: Any) -> AsyncIterator[WorkerProcess]:
    """Run a worker that takes this proxy's jobs through the SDK."""
    variables = stock_worker.environment(
        proxy.url, "default", proxy.parts.token, f"pod-{os.urandom(4).hex()}", 1000
    )
    async with worker_process(
        variables=environment(environment=variables, **more), python=python
    ) as running:
        await until(lambda: proxy.ready > 0, 60, "it asks for jobs")
        yield running


@pytest_asyncio.fixture(scope="module")
async def served() -> AsyncIterator[Proxy]:
    async with stock_proxy() as proxy:
        yield proxy


@pytest_asyncio.fixture(scope="module")
async def stock(served: Proxy, python: str) -> AsyncIterator[WorkerProcess]:
    """A worker with eight slots."""
    async with working(served, python, max_concurrency=8) as running:
        yield running


@pytest.fixture
def queue(served: Proxy, stock: WorkerProcess) -> QueueClient:
    return QueueClient(served)


async def test_a_prompt_is_answered_in_the_seeds_shape(queue: QueueClient) -> None:
    ended = await queue.end(await queue.run(prompt("hi")))
    assert ended["output"] == [{"text": ["hi 0 hi 1 hi 2 "], "input_tokens": 1, "output_tokens": 3}]


async def test_messages_stream_one_element_a_token_with_true_metrics(queue: QueueClient) -> None:
    messages = [{"role": "user", "content": "two words"}]
    params = {"max_tokens": 40, "seed": 20_000}
    job = await queue.run({"messages": messages, "sampling_params": params, "stream": True})
    output = (await queue.end(job))["output"]
    assert output == [element["output"] for element in (await queue.stream(job))["stream"]]
    assert "".join(step["text"][0] for step in output) == "".join(
        f"two words {n} " for n in range(40)
    )
    assert sum(step["output_tokens"] for step in output) == 40
    assert sum(step["input_tokens"] for step in output) == 2
    shown = [step["metrics"] for step in output]
    assert [one["stream_index"] for one in shown] == list(range(40))
    assert {(one["running"], one["pending"], one["scenario"]) for one in shown} == {
        (1, 0, "stream")
    }
    # The requested rate is 50 tokens per second.
    assert 20 < shown[-1]["avg_gen_throughput"] < 80


async def test_openai_passthrough_whole_and_streamed(queue: QueueClient) -> None:
    body = {"messages": [{"role": "user", "content": "hé"}], "max_tokens": 3}
    inputs = [
        {"openai_route": CHAT, "openai_input": body},
        {"openai_route": CHAT, "openai_input": body | {"stream": True}},
        {"openai_route": "/v1/models"},
        {"route": "/tokenize", "body": {"prompt": "x"}},
    ]
    jobs = [await queue.run(value) for value in inputs]
    [whole], events, [models], [tokens] = [(await queue.end(job))["output"] for job in jobs]
    assert whole["choices"][0]["message"]["content"] == "hé 0 hé 1 hé 2 "
    lines = "".join(events).split("\n\n")
    assert lines[-2] == "data: [DONE]"
    assert json.loads(lines[1].removeprefix("data: "))["choices"][0]["delta"]["content"] == "hé 0 "
    assert models["data"][0]["id"] == "scripted"
    assert tokens["count"] == 1


FAILURES = [
    (prompt(tempereture=1), "sampling_params.tempereture: unknown; did you mean temperature?"),
    (prompt(max_tokens=-1), "max_tokens: Input should be a valid integer, got -1"),
    (
        {"promt": "x"},
        "input must be an object with `openai_route`, `route`, `prompt` or `messages`",
    ),
    ([1, 2], "input must be an object with `openai_route`, `route`, `prompt` or `messages`"),
]


@pytest.mark.parametrize(("value", "sentence"), FAILURES)
async def test_a_bad_input_fails_with_a_sentence_that_names_it(
    queue: QueueClient, value: Any, sentence: str
) -> None:
    ended = await queue.end(await queue.run(value))
    assert (ended["status"], ended["error"]) == ("FAILED", sentence)


async def test_the_status_of_a_route_that_was_named_can_be_read_from_the_error(
    queue: QueueClient,
) -> None:
    refused = await queue.run(
        {"openai_route": ROUTE, "openai_input": {"prompt": "x", "max_tokens": "many"}}
    )
    admin = await queue.run({"route": "/sleep", "method": "POST"})
    error = (await queue.end(refused))["error"]
    assert re.search(r"'message': 'vLLM returned HTTP 400: \{\"error\"", error), error
    assert "vLLM returned HTTP 404" in (await queue.end(admin))["error"]


async def test_an_engine_error_in_a_stream_fails_the_job(queue: QueueClient) -> None:
    body = {"prompt": "x", "stream": True, "fault": "error_event:1", "max_tokens": 3}
    assert (await queue.end(await queue.run({"openai_route": ROUTE, "openai_input": body})))[
        "status"
    ] == "FAILED"


async def test_as_many_jobs_at_once_as_there_are_slots(queue: QueueClient) -> None:
    jobs = [await queue.run(prompt(max_tokens=40, seed=150_000)) for _ in range(8)]
    await until(lambda: _all_run(queue, jobs), 15, "all are taken before the first ends")
    for job in jobs:
        assert (await queue.end(job))["output"][0]["output_tokens"] == 40


async def _all_run(queue: QueueClient, jobs: list[str]) -> bool:
    return {(await queue.status(job))["status"] for job in jobs} == {"IN_PROGRESS"}


STOPPED = [
    {"stream": True, "seed": 5_000},
    {"stream": False, "seed": 5_000},
    {"stream": True, "seed": 0},
]


@pytest.mark.parametrize("more", STOPPED, ids=["stream", "whole", "while its chunk is in flight"])
async def test_a_stopped_job_frees_the_engine(
    queue: QueueClient, stock: WorkerProcess, more: dict[str, Any]
) -> None:
    job = await queue.run(
        prompt(max_tokens=1_000_000, seed=more["seed"]) | {"stream": more["stream"]}
    )
    await until(lambda: _runs(stock, queue, 1), what="the engine works")
    assert (await queue.call("POST", f"cancel/{job}"))["status"] == "CANCELLED"
    await until(lambda: _runs(stock, queue, 0), 5.0, "it is idle again")


async def _runs(stock: WorkerProcess, queue: QueueClient, wanted: int) -> bool:
    return await stock.metric(queue.proxy.http, "num_requests_running") == wanted


async def test_a_drained_worker_posts_its_last_job_and_exits(python: str) -> None:
    async with stock_proxy() as proxy, working(proxy, python) as running:
        queue = QueueClient(proxy)
        job = await queue.run(prompt(max_tokens=10, seed=100_000))
        await until(lambda: _all_run(queue, [job]), 20, "the job is taken")
        running.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.process.wait(), 20) == 0
        assert (await queue.end(job))["output"][0]["output_tokens"] == 10


async def test_a_dead_engine_ends_the_process_and_leaves_its_jobs_to_others(python: str) -> None:
    async with stock_proxy() as proxy:
        queue = QueueClient(proxy)
        async with working(proxy, python, max_concurrency=4) as running:
            job = await queue.run(prompt(max_tokens=1000, seed=100_000))
            await until(lambda: _all_run(queue, [job]), 20, "the job is taken")
            await queue.run(
                {"openai_route": ROUTE, "openai_input": {"prompt": "x", "fault": "engine_dead:0"}}
            )
            assert await asyncio.wait_for(running.process.wait(), 20) == 70
        await until(lambda: _waits(queue, job), 20, "it waits for another worker")


async def _waits(queue: QueueClient, job: str) -> bool:
    return bool((await queue.status(job))["status"] == "IN_QUEUE")


OUTPUT_FORMATS = [
    ({}, {"text": ["x 0 x 1 x 2 "], "input_tokens": 1, "output_tokens": 3}),
    ({"OUTPUT_FORMAT": "worker-vllm"}, "text_completion"),
]


@pytest.mark.parametrize(("more", "wanted"), OUTPUT_FORMATS, ids=["seed", "worker-vllm"])
async def test_one_job_from_the_command_line(
    python: str, more: dict[str, str], wanted: Any
) -> None:
    status, said = await _local(python, json.dumps({"input": prompt("x")}), more)
    assert status == 0, said
    assert str(wanted) in said


async def test_one_bad_job_from_the_command_line(python: str) -> None:
    status, said = await _local(python, json.dumps({"input": prompt(nonsense=1)}), {})
    assert status == 1
    assert "sampling_params.nonsense: unknown" in said


async def _local(python: str, value: str, more: dict[str, str]) -> tuple[int | None, str]:
    async with worker_process(
        "--test_input", value, variables=environment(environment=more), python=python
    ) as running:
        await asyncio.wait_for(running.process.wait(), 60)
        await until(
            lambda: any("worker.ended" in line for line in running.lines), what="all is read"
        )
        return running.process.returncode, "\n".join(running.lines)


async def test_the_sdks_local_api(python: str) -> None:
    port = str(free_port())
    flags = ("--rp_serve_api", "--rp_api_port", port)
    async with (
        worker_process(*flags, variables=environment(), python=python),
        aiohttp.ClientSession() as http,
    ):
        url = f"http://localhost:{port}"
        await until(lambda: _answers(http.get(url)), 60, "the API is up")
        async with http.post(f"{url}/runsync", json={"input": prompt("x")}) as response:
            assert (await response.json())["output"] == [
                {"text": ["x 0 x 1 x 2 "], "input_tokens": 1, "output_tokens": 3}
            ]
        async with http.post(
            f"{url}/run", json={"input": prompt("x") | {"stream": True}}
        ) as response:
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


async def test_without_the_sdk_the_worker_says_what_to_install(served: Proxy) -> None:
    variables = stock_worker.environment(served.url, "default", served.parts.token, "pod")
    async with worker_process(variables=environment(environment=variables)) as running:
        assert await asyncio.wait_for(running.process.wait(), 30) == 1
        await until(
            lambda: any("pip install" in line for line in running.lines),
            what="the remedy is printed",
        )
