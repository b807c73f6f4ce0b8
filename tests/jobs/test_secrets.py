"""Only the worker receives the secrets of a job."""

from pathlib import Path

from harness.proxy.command import command
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import serving
from harness.tools.waiting import until

SECRET = "canary-4f1d"
OPTIONS = {
    "s3Config": {
        "accessId": SECRET,
        "accessSecret": SECRET,
        "bucketName": SECRET,
        "endpointUrl": SECRET,
    },
    "webhook": f"https://example.com/hook?token={SECRET}",
}


async def test_responses_do_not_contain_secrets() -> None:
    async with serving() as proxy:
        queue = QueueClient(proxy)
        job = await queue.run({"a": 1}, **OPTIONS)
        shown = [
            await queue.status(job),
            await queue.stream(job, "?wait=1000"),
            await queue.call("GET", "requests"),
            await queue.call("GET", "health"),
            await queue.call("POST", f"cancel/{job}"),
            await queue.status(job),
        ]
        assert SECRET not in str(shown)


async def test_files_and_logs_do_not_contain_secrets(tmp_path: Path) -> None:
    """The bucket's keys and the webhook's URL are encrypted with a key outside of the store."""
    async with command(
        "proxy", "--port", "0", "--data-dir", str(tmp_path), "--log-level", "debug"
    ) as running:
        url = (await running.says(r"listens on (http://\S+)\.")).group(1)
        async with serving() as proxy:
            async with proxy.http.post(
                f"{url}/v2/default/run", json={"input": 1, **OPTIONS}
            ) as response:
                assert response.status == 200
        await until(lambda: any(tmp_path.glob("jobs.db*")), what="there is a file")
        assert SECRET not in running.text
        _look_into(tmp_path)
    assert SECRET not in running.text


def _look_into(folder: Path) -> None:
    for path in folder.iterdir():
        assert SECRET.encode() not in path.read_bytes(), path.name
        assert path.stat().st_mode & 0o077 == 0, f"{path.name} is readable by other users"
