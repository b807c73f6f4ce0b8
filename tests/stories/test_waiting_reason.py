"""Heartbeats, `status` and the final error name the same reason to a client that waits."""

import re

from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.tools.waiting import until
from harness.worker.puppet import hello, puppet

from proxy.wire.frames import Credit, Log

LOADING = re.compile(
    r"1 worker connected, none of them ready yet: it is loading \(loading the model, \d+ s\)\."
)


async def reason_of(proxy: Proxy, job: str) -> str:
    async with proxy.http.get(f"/v2/default/status/{job}") as response:
        return str((await response.json())["reason"])


async def test_heartbeats_and_status_name_the_same_reason() -> None:
    async with serving(heartbeat_first=0.01, heartbeat_queued=0.01) as proxy:
        async with proxy.http.post(CHAT, json=chat(stream=True)) as waiting:
            job = waiting.headers["x-job-id"]
            await waiting.content.readuntil(b": queued position=1\n:No worker is connected.\n")
            assert await reason_of(proxy, job) == "No worker is connected."
            said = Log("loading /srv/secret/weights")
            async with puppet(proxy, hello(), Credit(0, 0), said) as worker:
                await until(lambda: any(one.stage for one in proxy.parts.fleet))
                line = (await waiting.content.readuntil(b" s).\n")).splitlines()[-1]
                assert LOADING.fullmatch(line.decode().removeprefix(":"))
                assert LOADING.fullmatch(await reason_of(proxy, job))
                await worker.say(Credit(1, 0))
                await worker.job()
                async with (
                    proxy.http.post(CHAT, json=chat(stream=True)) as second,
                    proxy.http.post(CHAT, json=chat(stream=True)) as third,
                ):
                    taken = b":Held by a limit: the only slot of 1 worker is taken.\n"
                    await second.content.readuntil(taken)
                    await third.content.readuntil(b":Behind 1 job in the queue.\n")


async def test_the_final_error_names_the_reason() -> None:
    async with serving(queue_timeout=0.3) as proxy:
        async with proxy.http.post(CHAT, json=chat()) as response:
            message = (await response.json())["error"]["message"]
        assert re.fullmatch(
            r"No worker was free to take this job within \d s\. No worker is connected\.", message
        )
        async with puppet(proxy, hello(), Credit(0, 0), Log("warming up")):
            await until(lambda: any(one.stage for one in proxy.parts.fleet))
            async with proxy.http.post(CHAT, json=chat()) as response:
                message = (await response.json())["error"]["message"]
                job = response.headers["x-job-id"]
        assert re.search(r"it is loading \(warming up, \d s\)\.$", message)
        async with proxy.http.get(f"/v2/default/status/{job}") as response:
            assert (await response.json())["error"] == message
