"""The wheel that a user installs, its bill of materials, and the audit for vulnerabilities."""

import asyncio
import json
import os
import re
import subprocess
import sys
import zipfile
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from harness.tools.environments import tool, uv

import audit
from environment.table import AUDIT, ROOT

AUDIT_SECONDS = 60.0
PACKAGES = ("proxy", "worker_vllm")
LOCK = (
    "uvicorn==0.1.0 \\\n    --hash=sha256:0\ntorch==2.0.0+cpu\n"
    "idna==3.20\nidna==3.1 ; python_version < '3'\n"
)


def known(name: str) -> dict[str, Any]:
    """Return an advisory for every release of a package, in the format of an OSV service."""
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}]
    affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": ranges}]
    return {
        "id": f"GHSA-{name}",
        "summary": "Bad.",
        "affected": affected,
        "published": "2026-01-01T00:00:00Z",
    }


@asynccontextmanager
async def advisories(
    vulnerable: Callable[[str], bool], asked: list[tuple[str, str]]
) -> AsyncIterator[str]:
    """Run an advisory service on loopback; yield its URL."""

    async def answer(request: web.Request) -> web.Response:
        question = await request.json()
        name = question["package"]["name"]
        asked.append((name, question["version"]))
        return web.json_response({"vulns": [known(name)]} if vulnerable(name) else {})

    app = web.Application()
    app.router.add_post("/v1/query", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/query"
    finally:
        await runner.cleanup()


async def audited(service: str, folder: Path, pip_audit: str = "") -> tuple[int | None, str]:
    """Audit a small lock; return the exit status and the output."""
    lock = folder / "lock.txt"
    lock.write_text(LOCK)
    asking = [
        "--service",
        service,
        "--tool",
        pip_audit or tool(AUDIT.folder, "pip-audit"),
        str(lock),
    ]
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "scripts/audit.py", *asking),
        cwd=ROOT,
        env=env,
        stdout=PIPE,
        stderr=STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), AUDIT_SECONDS)
    return process.returncode, said.decode()


class TestAudit:
    async def test_a_clean_audit_has_asked_about_every_release_on_every_platform(
        self, tmp_path: Path
    ) -> None:
        asked: list[tuple[str, str]] = []
        async with advisories(lambda name: name == audit.CANARY[0], asked) as service:
            assert await audited(service, tmp_path) == (
                0,
                "audit: 4 pinned releases in 1 locks, 0 vulnerable\n",
            )
        assert set(asked) == {
            ("uvicorn", "0.1.0"), ("torch", "2.0.0"), ("idna", "3.20"), ("idna", "3.1"),
            audit.CANARY,
        }  # fmt: skip

    async def test_a_vulnerable_release_is_named_with_its_lock_and_the_remedy(
        self, tmp_path: Path
    ) -> None:
        async with advisories(lambda name: name in {audit.CANARY[0], "torch"}, []) as service:
            status, said = await audited(service, tmp_path)
        assert (status, said.splitlines()[0]) == (
            1,
            "torch==2.0.0 (lock.txt): GHSA-torch, fixed in 99",
        )

    async def test_a_service_that_reports_no_vulnerabilities_at_all_is_not_trusted(
        self, tmp_path: Path
    ) -> None:
        async with advisories(lambda _: False, []) as service:
            status, said = await audited(service, tmp_path)
        assert status == 2
        assert (
            "does not mean clean: pycrypto==2.6.1 has a published advisory, but it was not reported"
            in said
        )

    async def test_an_unreachable_service_is_reported_in_one_line_and_is_not_clean(
        self, tmp_path: Path
    ) -> None:
        async with advisories(lambda _: False, []) as gone:
            pass
        status, said = await audited(gone, tmp_path)
        assert status == 2
        assert len(said.splitlines()) == 1
        assert said.startswith(f"audit: failed, which does not mean clean: {gone} did not answer: ")

    async def test_a_missing_tool_is_not_clean(self, tmp_path: Path) -> None:
        status, said = await audited("http://127.0.0.1:9/", tmp_path, str(tmp_path / "absent"))
        assert (status, len(said.splitlines())) == (2, 1)

    def test_skipped_packages_count_as_not_audited(self) -> None:
        skipped = {"name": "torch", "skip_reason": "not found"}
        canary = {
            "name": audit.CANARY[0],
            "version": audit.CANARY[1],
            "vulns": [{"id": "X", "fix_versions": []}],
        }
        report = json.dumps({"dependencies": [skipped, canary]})
        with pytest.raises(audit.NotAuditedError, match=r"does not contain torch==2\.0\.0"):
            audit.findings(report, [("torch", "2.0.0"), audit.CANARY])
        assert audit.findings(report, [audit.CANARY]) == []

    def test_the_canary_is_not_one_of_our_packages(self) -> None:
        pinned = {
            pin for lock in audit.REQUIREMENTS.glob("*.txt") for pin in audit.pins(lock.read_text())
        }
        assert len(pinned) > 100
        assert audit.CANARY[0] not in {name for name, _ in pinned}


def test_the_list_of_materials_names_every_package_of_a_base_install(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/sbom.py", "--tool", tool(AUDIT.folder, "cyclonedx-py")]
    subprocess.run(
        [*command, str(tmp_path / "new" / "sbom.json")], cwd=ROOT, capture_output=True, check=True
    )
    bill = json.loads((tmp_path / "new" / "sbom.json").read_bytes())
    assert bill["metadata"]["component"]["name"] == "vllm-serverless"
    components = [(one["name"].lower(), one["version"]) for one in bill["components"]]
    assert sorted(components) == sorted(
        audit.pins((ROOT / "requirements" / "base.txt").read_text())
    )
    assert all(one["externalReferences"][0]["hashes"] for one in bill["components"])


def built(folder: Path) -> Path:
    """Build the wheel without a network and with one timestamp for all files."""
    command = [
        uv(),
        "build",
        "--quiet",
        "--offline",
        "--no-cache",
        "--wheel",
        "--out-dir",
        str(folder),
        str(ROOT),
    ]
    ended = subprocess.run(
        command,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1735689600"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    [wheel] = folder.glob("*.whl")
    return wheel


def sources() -> set[str]:
    """Return the files of our packages: in a repository those of git, otherwise all that exist."""
    listed = subprocess.run(
        [
            "git", "ls-files",
            "--cached", "--others", "--exclude-standard", "--deduplicate", *PACKAGES,
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0 and listed.stdout:
        return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    there = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in there if "__pycache__" not in path.parts}


def test_the_wheel_has_the_files_of_the_repository_and_is_reproducible(tmp_path: Path) -> None:
    first, second = built(tmp_path / "one"), built(tmp_path / "two")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as wheel:
        own = {name for name in wheel.namelist() if not name.endswith("/")}
        metadata = {name for name in own if re.match(r"vllm_serverless-[\w.]+\.dist-info/", name)}
        names = {name.partition("/")[2] for name in metadata}
        assert names == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
        assert own - metadata == sources()
        assert all(wheel.read(name) == (ROOT / name).read_bytes() for name in own - metadata)
        assert not [name for name in own if name.endswith(".pth")], (
            "such a file would run at every start of Python"
        )
