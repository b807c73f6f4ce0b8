"""Audio through the proxy to a real Whisper model.

It is the smallest possible model, so only the format of its output can be checked, not the words.
"""

import json
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import openai
import pytest
import pytest_asyncio
from harness.proxy.server import Proxy, serving
from harness.worker.process import worker
from harness.worker.real_vllm import START_SECONDS

pytestmark = pytest.mark.timeout(START_SECONDS)

NOISE_SECONDS = 2


@pytest_asyncio.fixture(scope="module")
async def whisper() -> AsyncIterator[Proxy]:
    """Start a proxy with a worker that transcribes instead of generating."""
    if not any(find_spec(reader) for reader in ("soundfile", "av")):
        pytest.skip(
            "vLLM needs `soundfile` or `av` to read audio; install it with: uv pip install av"
        )
    from harness.worker.whisper_model import FLAGS, make_whisper  # noqa: PLC0415 - needs vLLM's dependencies

    with TemporaryDirectory() as folder:
        make_whisper(Path(folder))
        settings = {
            "engine": "vllm",
            "model": folder,
            "served_model_name": "whisper",
            "heartbeat_seconds": 5,
        }
        kv_cache = {"VLLM_CPU_KVCACHE_SPACE": "1"}
        async with (
            serving() as proxy,
            worker(proxy, *FLAGS, log_level="info", environment=kv_cache, **settings),
        ):
            yield proxy


@pytest.fixture
def sound() -> bytes:
    from harness.worker.whisper_model import noise  # noqa: PLC0415 - see above

    return noise(NOISE_SECONDS)


async def test_a_sound_file_is_transcribed(whisper: Proxy, sound: bytes) -> None:
    async with whisper.openai() as client:
        answer = await client.audio.transcriptions.create(
            file=("noise.wav", sound), model="whisper", language="en", temperature=0
        )
    assert answer.text
    assert answer.usage is not None
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == NOISE_SECONDS


async def test_a_transcription_is_streamed(whisper: Proxy, sound: bytes) -> None:
    async with whisper.openai() as client:
        whole = await client.audio.transcriptions.create(
            file=("a.wav", sound), model="whisper", language="en"
        )
        stream = await client.audio.transcriptions.create(
            file=("a.wav", sound),
            model="whisper",
            language="en",
            stream=True,
            response_format="json",
        )
        chunks = [json.loads(event.model_dump_json()) async for event in stream]
    assert (
        "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == whole.text
    )
    assert chunks[0]["object"] == "transcription.chunk"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_an_invalid_audio_file_is_rejected_with_vllms_message(whisper: Proxy) -> None:
    async with whisper.openai() as client:
        with pytest.raises(openai.BadRequestError, match="audio"):
            await client.audio.transcriptions.create(
                file=("a.wav", b"RIFF"), model="whisper", language="en"
            )
