"""The real command refuses insecure settings, for any user and any store."""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from harness.proxy.command import command

NOBODY = 65534
START_SECONDS = 60.0
# The second line only permits reading the Python that runs the tests, wherever that is; it grants
# no additional write access.
AS_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--no-new-privs",
)
READING = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
EXPOSED, SHORT, EMPTY, SAME, NO_TOKEN = (
    "can be reached by others, and no key is set",
    "is shorter than 8 characters",
    "a key is empty",
    "a key is also the worker token",
    r"\(PROXY_WORKER_TOKEN\): the token is empty",
)
UNSENDABLE = r"\(PROXY_API_KEY\): character 3 of a key is not a visible ASCII character"
REFUSED: tuple[tuple[str, str, tuple[str, ...], dict[str, str]], ...] = (
    (EXPOSED, "proxy", ("--host", "0.0.0.0"), {}),
    (EXPOSED, "up", ("--host", "::", "--store", "memory:"), {"PROXY_WORKER_TOKEN": "t" * 24}),
    (SHORT, "proxy", (), {"PROXY_HOST": "::ffff:0.0.0.0", "PROXY_API_KEY": "alice=seven77"}),
    (EMPTY, "up", (), {"PROXY_API_KEY": ""}),
    (
        SAME,
        "proxy",
        ("--store", "memory:"),
        {"PROXY_API_KEY": "k" * 24, "PROXY_WORKER_TOKEN": "k" * 24},
    ),
    (NO_TOKEN, "proxy", (), {"PROXY_WORKER_TOKEN": ""}),
    (UNSENDABLE, "proxy", (), {"PROXY_API_KEY": "clé-secrète-1234"}),
)


@pytest.fixture(scope="module")
def nobody() -> Sequence[str]:
    """Return a command prefix that runs as a user who owns no files."""
    if os.geteuid() != 0:
        pytest.skip("only root can run the command as another user")
    for way in ((*AS_NOBODY, *READING), AS_NOBODY):
        try:
            probe = subprocess.run(
                [*way, sys.executable, "-c", "import typer"], capture_output=True, check=False
            )
        except FileNotFoundError:
            pytest.skip("needs setpriv: apt-get install util-linux")
        if probe.returncode == 0:
            return way
    return pytest.skip("another user cannot read the Python of these tests")


@pytest.fixture
def theirs() -> Iterator[Path]:
    """Yield a folder that this user owns."""
    with tempfile.TemporaryDirectory() as made:
        os.chown(made, NOBODY, NOBODY)
        yield Path(made)


async def refused(
    folder: Path, row: tuple[str, str, tuple[str, ...], dict[str, str]], through: Sequence[str]
) -> None:
    """Assert that the command refuses to start, with one line of output."""
    reason, name, flags, variables = row
    place = ("--port", "0", "--data-dir", str(folder / "data"))
    async with command(
        name, *place, *flags, through=through, **variables | {"HOME": str(folder)}
    ) as started:
        assert await asyncio.wait_for(started.process.wait(), START_SECONDS) == 78
        await started.says(".")
    assert re.fullmatch(rf"vllm-serverless: .*{reason}.*", started.text), started.text
    assert not (folder / "data").exists()


@pytest.mark.parametrize("row", REFUSED, ids=[f"{row[1]} {row[0]}" for row in REFUSED])
async def test_insecure_settings_are_refused_and_leave_no_files(
    tmp_path: Path, row: tuple[str, str, tuple[str, ...], dict[str, str]]
) -> None:
    await refused(tmp_path, row, ())


async def test_another_user_is_refused_as_root_is(theirs: Path, nobody: Sequence[str]) -> None:
    await refused(theirs, REFUSED[0], nobody)


async def test_another_user_may_serve_this_machine_without_a_key(
    theirs: Path, nobody: Sequence[str]
) -> None:
    place = ("--host", "127.8.8.8", "--port", "0", "--data-dir", str(theirs / "data"))
    async with command("proxy", *place, through=nobody, HOME=str(theirs)) as started:
        await started.says(r"The proxy listens on http://127\.8\.8\.8:\d+", START_SECONDS)
        assert await started.stop() == 0
    made = list((theirs / "data").rglob("*"))
    assert {path.stat().st_uid for path in made} == {NOBODY}
    assert not [path for path in made if path.stat().st_mode & 0o077], (
        "others may not read any of it"
    )


async def test_an_unusable_data_directory_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with command(
        "proxy", "--port", "0", "--data-dir", str(tmp_path / "file" / "data")
    ) as started:
        assert await asyncio.wait_for(started.process.wait(), START_SECONDS) == 69
        await started.says(".")
    assert re.fullmatch(
        r"vllm-serverless: cannot use the data directory \S+/file/data: .* \(PROXY_DATA_DIR\)\.",
        started.text,
    )
