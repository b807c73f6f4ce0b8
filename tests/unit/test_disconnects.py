"""Work for a client of the queue API that may disconnect."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from fastapi import Request

from proxy.access.keys import ANONYMOUS
from proxy.api.queue.request import ClientGoneError, RequestContext

NOT_USED: Any = None


class Scene:
    """A request, whose client leaves when `left` is set, and the errors of the event loop."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.errors: list[dict[str, Any]] = []
        request = Request({"type": "http"}, self.receive)
        self.context = RequestContext(request, NOT_USED, ANONYMOUS, NOT_USED, NOT_USED)
        self.result: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def work(self) -> str:
        return await self.result


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[Scene]:
    one = Scene()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: one.errors.append(context))
    yield one
    await settle()
    assert one.errors == []


async def settle() -> None:
    """Let all tasks run until they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_work_is_cancelled_when_the_client_disconnects(scene: Scene) -> None:
    task = asyncio.create_task(scene.context.unless_gone(scene.work()))
    await settle()
    scene.left.set()
    with pytest.raises(ClientGoneError):
        await task
    assert scene.result.cancelled()


@pytest.mark.parametrize("is_first", [False, True])
async def test_work_that_ends_in_the_turn_of_the_disconnect(scene: Scene, is_first: bool) -> None:
    task = asyncio.create_task(scene.context.unless_gone(scene.work()))
    await settle()
    if is_first:
        scene.result.set_result("done")
        scene.left.set()
    else:
        scene.left.set()
        scene.result.set_result("done")
    assert await task == "done"


async def test_a_timeout_of_the_work_itself_is_passed_on(scene: Scene) -> None:
    scene.result.set_exception(TimeoutError("of the work"))
    with pytest.raises(TimeoutError, match="of the work"):
        await scene.context.unless_gone(scene.work())
