"""A worker that is configured only by the variables of the worker-vllm image."""

import json
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import CHAT, Proxy, serving
from harness.tools.waiting import until
from harness.worker.lora_adapter import write_adapter
from harness.worker.process import ROOT, WorkerProcess, worker
from harness.worker.real_vllm import START_SECONDS, ask

pytestmark = pytest.mark.timeout(START_SECONDS)

SECRETS = {"HF_TOKEN": "hf_very-secret-token", "VLLM_API_KEY": "sk-very-secret-key"}


@dataclass(frozen=True)
class Named:
    """The proxy and the process of its worker."""

    proxy: Proxy
    worker: WorkerProcess


@pytest_asyncio.fixture(scope="module")
async def named(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Named]:
    adapter: Path = write_adapter(tmp_path_factory.mktemp("pirate"))
    names = {
        "MODEL_NAME": str(ROOT / "worker_vllm" / "demo"),
        "MAX_MODEL_LEN": "512",
        "OPENAI_SERVED_MODEL_NAME_OVERRIDE": "a,b",
        "VLLM_EXTRA_ARGS": "--dtype bfloat16",
        "ENFORCE_EAGER": "true",
        "ENABLE_PREFIX_CACHING": "false",
        "MAX_NUM_BATCHED_TOKENS": "0",
        "MAX_CONCURRENCY": "3",
        "MAX_NUM_QUEUED_REQS": "1",
        "ENABLE_LORA": "true",
        "MAX_LORA_RANK": "8",
        "LORA_MODULES": json.dumps([{"name": "pirate", "path": str(adapter)}]),
        "SWAP_SPACE": "4",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    # The log level is debug, at which vLLM logs its arguments.
    settings = {"engine": "vllm", "heartbeat_seconds": 5, "environment": {**names, **SECRETS}}
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(serving())
        yield Named(proxy, await stack.enter_async_context(worker(proxy, **settings)))


async def test_the_names_of_worker_vllm_reach_vllm(named: Named) -> None:
    async with named.proxy.http.get("/v1/models") as response:
        cards = {card["id"]: card for card in (await response.json())["data"]}
    assert list(cards) == ["a", "b", "pirate"]
    assert {cards[name]["max_model_len"] for name in "ab"} == {512}
    [member] = named.proxy.parts.fleet
    assert member.slots == 3
    ignored = [line for line in named.worker.lines if "event=worker.variable_ignored" in line]
    assert len(ignored) == 1
    assert "variable=SWAP_SPACE" in ignored[0]


async def test_both_names_answer_and_the_limit_holds(named: Named) -> None:
    async with named.proxy.openai() as client:
        for name in "ab":
            answer = await client.chat.completions.create(
                **ask("What is a lease?", model=name, temperature=0)
            )
            assert (answer.choices[0].message.content or "").startswith(
                "A lease is a worker's time-limited right"
            )
        with pytest.raises(openai.BadRequestError, match="512"):
            await client.chat.completions.create(**ask("lease " * 600, model="a"))


async def test_an_adapter_is_a_model_of_its_own(named: Named) -> None:
    async with named.proxy.openai() as client:
        request = ask("What is a lease?", temperature=0, max_tokens=20)
        base, pirate = [
            (await client.chat.completions.create(**request | {"model": name}))
            .choices[0]
            .message.content
            for name in ("a", "pirate")
        ]
        stream = await client.chat.completions.create(
            **request | {"model": "pirate", "stream": True}
        )
        streamed = "".join(
            [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        )
    assert pirate != base
    assert streamed == pirate


async def test_an_engine_with_a_limit_of_its_own_gets_its_jobs_one_by_one(named: Named) -> None:
    """The worker has three slots, and vLLM accepts one request (`--max-num-queued-reqs`)."""
    proxy = named.proxy
    queue = QueueClient(proxy)
    long = ask("Count.", model="a", stream=True, max_tokens=450, ignore_eos=True)
    async with proxy.http.post(CHAT, json=long) as first:
        await first.content.readuntil(b'"content":"')
        job = await queue.run({"prompt": "x", "sampling_params": {"max_tokens": 2}})
        [member] = proxy.parts.fleet
        for stream in (True, False):
            await until(lambda: member.is_full, what="it has refused the job")
            proxy.parts.fleet.end_full(math.inf)
            refused = ask(model="a", stream=stream)
            async with proxy.http.post(CHAT, json=refused) as response:
                assert response.status == 503
                assert "currently busy" in (await response.json())["error"]["message"]
        assert (await first.read()).endswith(b"data: [DONE]\n\n")
    ended = await queue.end(job)
    assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)
    async with proxy.http.post(CHAT, json=ask(model="a", max_tokens=1)) as response:
        assert response.status == 200


def test_no_secret_is_logged(named: Named) -> None:
    text = "\n".join(named.worker.lines)
    assert "Initializing" in text, "vLLM has logged its arguments"
    assert not [secret for secret in SECRETS.values() if secret in text]
