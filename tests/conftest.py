"""The shared fixtures, the order of a parallel run, and the report of tests that did not run."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from harness.proxy.server import Proxy, serving
from harness.proxy.shared import Line
from harness.tools.scheduling import FileScheduling, longest_first
from harness.worker.process import worker
from xdist.remote import Producer


@pytest_asyncio.fixture(scope="session")
async def line() -> AsyncIterator[Line]:
    """A proxy and two scripted workers, shared by all stories that do not damage them."""
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(serving())
        workers = [await stack.enter_async_context(worker(proxy)) for _ in range(2)]
        yield Line(proxy, workers)


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy for one test: no workers, short timeouts, so that a loss is detected soon."""
    async with serving(lease=1.0, queue_timeout=30.0) as running:
        yield running


def pytest_configure() -> None:
    """Let the test processes react to Ctrl-C even if this run was started in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests of a parallel run; each of its processes collects all of them."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items[:] = longest_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FileScheduling:
    """Distribute whole files."""
    return FileScheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report the tests that this machine could not run, so that they do not count as passed."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, number in sorted(reasons.items()):
        terminalreporter.write_line(f"not run: {number} tests: {reason.removeprefix('Skipped: ')}")
