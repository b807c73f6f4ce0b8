"""Keys and tokens come from files and variables and never appear in process arguments."""

import asyncio
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from harness.data.canaries import Canaries
from harness.proxy.command import Command, command, family
from harness.proxy.server import CHAT, chat
from harness.tools.terminal import terminal
from harness.tools.waiting import until

pytestmark = pytest.mark.slow

SCRIPTED = {"WORKER_ENGINE": "scripted"}


class Secrets:
    """A key and a token, each in its own file, and the arguments that were searched for them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.canaries = folder, Canaries()
        self.key, self.token = self.canaries.new("key"), self.canaries.new("token")
        self.keys = self.file("keys", f"# of the team\nteam={self.key}\n")
        self.tokens = self.file("token", f"{self.token}\n")

    def file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
        path.write_text(text)
        return str(path)

    def look(self, *leaders: int) -> int:
        """Search the arguments of these processes and their children; return the number found."""
        found = 0
        for pid in family(list(leaders)):
            with suppress(OSError):
                self.canaries.see(f"process {pid}", Path(f"/proc/{pid}/cmdline").read_bytes())
                found += 1
        return found


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    return Secrets(tmp_path)


async def url_of(running: Command) -> str:
    return (await running.says(r"(?:listens on|base URL) +(http://[^/]+:\d+)")).group(1)


async def is_answered(url: str, key: str) -> bool:
    async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {key}"}) as http:
        async with http.post(CHAT, json=chat("hello")) as response:
            return response.status == 200


async def test_files_reach_a_proxy_a_worker_doctor_and_chat(secrets: Secrets) -> None:
    place = ("--port", "0", "--data-dir", str(secrets.folder / "data"))
    given = ("--api-key-file", secrets.keys, "--worker-token-file", secrets.tokens)
    async with command("proxy", *place, *given) as proxy:
        url = await url_of(proxy)
        token = ("--token-file", secrets.tokens)
        async with command(
            "worker", "--connect", url, *token, **SCRIPTED, WORKER_TOKEN="not this one"
        ) as worker:
            await worker.says(r"event=engine\.ready")
            await until(lambda: is_answered(url, secrets.key), 20)
            assert secrets.look(proxy.process.pid, worker.process.pid) >= 2
            named = ("--base-url", f"{url}/v1", "--api-key-file", secrets.keys)
            async with terminal("chat", *named) as (screen, talking):
                await screen.shows("scripted at")
                secrets.look(talking.pid)
            async with command(
                "doctor", "--connect", url, COLUMNS="200", WORKER_TOKEN_FILE=secrets.tokens
            ) as doctor:
                await doctor.says("accepted for endpoint default")
            assert await worker.stop() == 0
        assert "deprecated" not in proxy.text + worker.text + doctor.text
        for one in (proxy, worker, doctor):
            secrets.canaries.see("what was printed", one.text)
    secrets.canaries.see("the screen", bytes(screen.seen))
    assert secrets.canaries.leaks() == []


async def test_up_passes_the_token_to_its_workers_privately(secrets: Secrets) -> None:
    place = ("--port", "0", "--data-dir", str(secrets.folder / "data"), "--workers", "2")
    variables = {"PROXY_API_KEY_FILE": secrets.keys, "PROXY_WORKER_TOKEN_FILE": secrets.tokens}
    # The token file of another worker, which `up` must not pass on.
    wrong = {"WORKER_TOKEN_FILE": "/nowhere"}
    async with command("up", *place, **SCRIPTED, **variables, **wrong) as up:
        assert await is_answered(await url_of(up), secrets.key)
        workers = [pid for pid in children(up.process.pid) if b"worker_vllm" in cmdline(pid)]
        assert len(workers) == 2
        assert secrets.look(up.process.pid, *workers) >= 3
        assert await up.stop() == 0
    secrets.canaries.see("what was printed", up.text)
    secrets.canaries.see_folder(secrets.folder / "data" / "logs")
    assert secrets.canaries.leaks() == []


def children(parent: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


OLD: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("proxy", "--port", "0"), ("--api-key", "--worker-token"), r"listens on"),
    (("worker", "--connect", "http://127.0.0.1:9"), ("--token",), r"event=channel\.unreachable"),
    (("doctor", "--connect", "http://127.0.0.1:9"), ("--token",), r"NOT proxy"),
    (("chat", "--base-url", "http://127.0.0.1:9/v1"), ("--api-key",), r"127\.0\.0\.1:9/v1: "),
)
WARNING = re.compile(
    r"^vllm-serverless: (\S+) is deprecated .* Use (\S+) PATH or the variable \w+\.$", re.MULTILINE
)


async def test_deprecated_flags_work_with_one_warning_each(secrets: Secrets) -> None:
    async def old(arguments: Sequence[str], flags: Sequence[str], says: str) -> None:
        given = [part for flag in flags for part in (flag, secrets.canaries.new(flag.strip("-")))]
        folder = {"PROXY_DATA_DIR": str(secrets.folder / "data")}
        async with command(*arguments, *given, COLUMNS="300", **folder, **SCRIPTED) as running:
            await running.says(says)
        assert WARNING.findall(running.text) == [(flag, f"{flag}-file") for flag in flags]

    await asyncio.gather(*(old(*row) for row in OLD))
