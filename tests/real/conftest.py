"""A proxy and two workers with real vLLM and the demo model, shared by all tests of a run."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from importlib.util import find_spec

import pytest
import pytest_asyncio
from harness.proxy.server import serving
from harness.proxy.shared import Real
from harness.tools.environments import skip_if_fast
from harness.worker.real_vllm import real_worker


@pytest.fixture(autouse=True, scope="session")
def _vllm() -> None:
    skip_if_fast()
    if find_spec("vllm") is None:
        pytest.skip(
            "vLLM is not installed, because this machine is not supported; `make up` says why"
        )


@pytest_asyncio.fixture(scope="session")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Real]:
    """Start two workers at the same time, which takes about a minute on two cores."""
    records = tmp_path_factory.mktemp("records")
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(serving())
        contexts = [real_worker(proxy, records) for _ in range(2)]
        workers = await asyncio.gather(
            *(stack.enter_async_context(context) for context in contexts)
        )
        yield Real(proxy, workers, records)
