"""Jobs on real vLLM: native prompts and messages, and any route, in the formats of the guide."""

import pytest
from harness.proxy.queue_api import QueueClient, said
from harness.proxy.shared import Real
from harness.tools.waiting import until
from harness.worker.real_vllm import START_SECONDS

pytestmark = pytest.mark.timeout(START_SECONDS)

QUESTION = [{"role": "user", "content": "What is a lease?"}]
ANSWER = "A lease is a worker's time-limited right to its jobs."
GREEDY = {"temperature": 0}
LONG = {"ignore_eos": True, "max_tokens": 400}


@pytest.fixture
def queue(real: Real) -> QueueClient:
    return QueueClient(real.proxy)


async def test_messages_are_answered_whole(queue: QueueClient) -> None:
    answer = await queue.call(
        "POST", "runsync", json={"input": {"messages": QUESTION, "sampling_params": GREEDY}}
    )
    assert answer["status"] == "COMPLETED"
    assert set(answer["output"]) == {"text", "input_tokens", "output_tokens"}
    assert answer["output"]["text"][0].startswith(ANSWER)
    assert answer["output"]["input_tokens"] > 5
    assert answer["output"]["output_tokens"] > 10


async def test_a_stream_has_the_same_text_and_tokens_with_real_metrics(queue: QueueClient) -> None:
    # The load is read every half second, so a short answer can share a reading of an idle engine.
    value = {"messages": QUESTION, "sampling_params": GREEDY | LONG}
    whole = (await queue.end(await queue.run(value)))["output"]
    job = await queue.run(value | {"stream": True})
    await queue.end(job)
    elements = (await queue.stream(job))["stream"]
    assert said(elements) == whole["text"][0]
    for name in ("input_tokens", "output_tokens"):
        assert sum(element["output"][name] for element in elements) == whole[name]
    shown = [element["metrics"] for element in elements]
    assert [one["stream_index"] for one in shown] == list(range(len(shown)))
    assert any(one["running"] >= 1 and 0 < one["gpu_kv_cache_usage"] < 1 for one in shown)
    assert any(one["avg_gen_throughput"] > 0 for one in shown)


async def test_texts_of_several_choices(queue: QueueClient) -> None:
    params = {"n": 2, "temperature": 0.7, "seed": 1, "max_tokens": 6}
    output = (
        await queue.end(
            await queue.run({"prompt": ["A worker", "A lease"], "sampling_params": params})
        )
    )["output"]
    assert len(output["text"]) == 4
    assert output["output_tokens"] == 24


BAD = [
    ({"temperature": -1}, "temperature"),
    ({"top_p": "much"}, "top_p"),
    ({"stop_token_ids": "a"}, "stop_token_ids"),
    ({"structured_outputs": {"json": 5}}, "structured_outputs"),
    ({"detokenize": False}, "sampling_params.detokenize: unknown"),
]


@pytest.mark.parametrize(("params", "named"), BAD)
async def test_a_bad_sampling_parameter_is_named(
    queue: QueueClient, params: dict[str, object], named: str
) -> None:
    answer = await queue.call(
        "POST", "runsync", json={"input": {"prompt": "x", "sampling_params": params}}
    )
    assert answer["status"] == "FAILED"
    assert named in answer["error"]


async def test_any_route(queue: QueueClient) -> None:
    tokens = await queue.end(
        await queue.run({"route": "/tokenize", "body": {"model": "demo", "prompt": "A worker"}})
    )
    assert tokens["output"][0]["count"] == len(tokens["output"][0]["tokens"])
    models = await queue.end(await queue.run({"openai_route": "/v1/models"}))
    assert models["output"][0]["data"][0]["id"] == "demo"
    assert (await queue.end(await queue.run({"route": "/sleep", "method": "POST"})))[
        "status"
    ] == "FAILED"


async def test_a_cancelled_job_frees_the_engine(queue: QueueClient, real: Real) -> None:
    endless = {
        "messages": QUESTION,
        "stream": True,
        "sampling_params": {"ignore_eos": True, "max_tokens": 1900},
    }
    job = await queue.run(endless)
    await until(lambda: _running(real, 1), what="the engine works")
    await queue.call("POST", f"cancel/{job}")
    await until(lambda: _running(real, 0), 2.0, "it is idle")


async def _running(real: Real, wanted: int) -> bool:
    return (
        sum([await one.metric(real.proxy.http, "num_requests_running") for one in real.workers])
        == wanted
    )
