"""A model is baked into an image: downloaded from a hub, noted, and found by an offline worker."""

import asyncio
import hashlib
import json
import os
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from harness.worker.process import ROOT

from worker_vllm.settings import read_settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_for-the-gated-one"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "original/consolidated.pth": b"the weights once more",
}


@asynccontextmanager
async def hub() -> AsyncIterator[str]:
    """Serve the routes of a hub that a download needs, with one gated model, `org/name`."""

    def headers(data: bytes) -> dict[str, str]:
        digest = hashlib.sha1(data).hexdigest()  # noqa: S324 - as git does
        return {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}

    def check(request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized

    async def revision(request: web.Request) -> web.Response:
        check(request)
        return web.json_response(
            {"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
        )

    async def tree(request: web.Request) -> web.Response:
        check(request)
        return web.json_response(
            [{"type": "file", "path": path, "size": len(FILES[path]), "oid": "0"} for path in FILES]
        )

    async def resolve(request: web.Request) -> web.Response:
        check(request)
        data = FILES[request.match_info["path"]]
        return web.Response(body=data, headers=headers(data))

    app = web.Application()
    app.router.add_get("/api/models/org/name/revision/{revision}", revision)
    app.router.add_get("/api/models/org/name/tree/{revision}", tree)
    app.router.add_get("/org/name/resolve/{revision}/{path:.+}", resolve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def bake(url: str, folder: Path, token: str) -> tuple[int, str]:
    """Run the command as the Dockerfile does; return its exit status and its output."""
    variables = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_TOKEN": token,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "0",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker_vllm.bake", "org/name", "--revision", ""),
        *("--tokenizer", "", "--quantization", "fp8"),
        *("--into", str(folder / "baked"), "--note", str(folder / "note.json")),
        cwd=ROOT, env=variables, stdout=PIPE, stderr=STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def holding(text: str, folder: Path) -> list[Path]:
    """Return the files that contain this text."""
    return [
        path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()
    ]


async def test_a_baked_model_is_found_by_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub() as url:
        code, text = await bake(url, tmp_path, TOKEN)
    assert code == 0, text
    model = tmp_path / "baked" / "model"
    assert {name for name in FILES if (model / name).exists()} == {
        "config.json",
        "model.safetensors",
    }
    assert json.loads((tmp_path / "note.json").read_text()) == {
        "MODEL_NAME": str(model), "TOKENIZER_NAME": str(model), "QUANTIZATION": "fp8"
    }  # fmt: skip
    assert not holding(TOKEN, tmp_path)
    # `monkeypatch` restores these variables, which `read_settings` changes.
    for name in ("TOKENIZER_NAME", "QUANTIZATION", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MODEL_NAME", "org/name")
    monkeypatch.setenv("WORKER_BAKED_MODEL", str(tmp_path / "note.json"))
    assert read_settings().model == str(model)


async def test_without_the_token_the_build_fails(tmp_path: Path) -> None:
    async with hub() as url:
        code, text = await bake(url, tmp_path, "")
    assert code != 0
    assert "401" in text
    assert not (tmp_path / "note.json").exists()
