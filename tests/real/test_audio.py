"""Speech through the proxy into a real Whisper: the smallest there is, so only its form can be right, not its words."""

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
    """A line whose worker transcribes instead of generating."""
    if not any(find_spec(reader) for reader in ("soundfile", "av")):
        pytest.skip(
            "vLLM reads sound files with `soundfile` or `av`; to run them: uv pip install av"
        )
    from harness.worker.whisper_model import FLAGS, make_whisper  # noqa: PLC0415 - it needs what comes with vLLM

    with TemporaryDirectory() as folder:
        make_whisper(Path(folder))
        told = {
            "engine": "vllm",
            "model": folder,
            "served_model_name": "whisper",
            "heartbeat_seconds": 5,
        }
        kv_cache = {"VLLM_CPU_KVCACHE_SPACE": "1"}
        async with (
            serving() as proxy,
            worker(proxy, *FLAGS, log_level="info", environment=kv_cache, **told),
        ):
            yield proxy


@pytest.fixture
def sound() -> bytes:
    from harness.worker.whisper_model import noise  # noqa: PLC0415 - see above

    return noise(NOISE_SECONDS)


async def test_a_sound_file_is_transcribed(whisper: Proxy, sound: bytes) -> None:
    async with whisper.openai() as client:
        told = await client.audio.transcriptions.create(
            file=("noise.wav", sound), model="whisper", language="en", temperature=0
        )
    assert told.text
    assert told.usage is not None
    assert told.usage.type == "duration"
    assert told.usage.seconds == NOISE_SECONDS


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


async def test_what_is_no_sound_is_refused_in_vllms_words(whisper: Proxy) -> None:
    async with whisper.openai() as client:
        with pytest.raises(openai.BadRequestError, match="audio"):
            await client.audio.transcriptions.create(
                file=("a.wav", b"RIFF"), model="whisper", language="en"
            )
