"""Transcription and translation: multipart forms reach the engine intact on every base path."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from hashlib import sha256
from io import BytesIO
from typing import Any, NamedTuple

import aiohttp
import openai
import pytest
import pytest_asyncio
from harness.proxy.server import Proxy, serving
from harness.worker.process import worker
from harness.worker.transcription_server import WORDS, Heard, Speech, speech

# The file crosses the worker's socket in about fifty parts.
FILE_BYTES = 3 * 1024 * 1024
BASES = ("/v1", "/openai/v1", "/v2/speech/openai/v1")
TRANSCRIPTIONS = "/v1/audio/transcriptions"


class Studio(NamedTuple):
    """A proxy with two endpoints, and the transcription servers behind their workers."""

    proxy: Proxy
    first: Speech
    speech: Speech


@pytest_asyncio.fixture(scope="module")
async def studio() -> AsyncIterator[Studio]:
    """Two endpoints that serve different models."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(speech(model)) for model in ("other", "whisper")]
        proxy = await stack.enter_async_context(
            serving(endpoint=["default=other", "speech=whisper"])
        )
        for endpoint, server in zip(("default", "speech"), servers, strict=True):
            await stack.enter_async_context(worker(proxy, endpoint=endpoint, upstream=server.url))
        yield Studio(proxy, *servers)


def client(proxy: Proxy, base: str = "/v2/speech/openai/v1") -> openai.AsyncOpenAI:
    """Return the OpenAI client for one of the base paths of the API."""
    return proxy.openai(base_url=f"{proxy.url}{base}")


async def test_a_file_and_its_fields_arrive_intact(studio: Studio) -> None:
    data = os.urandom(FILE_BYTES)
    async with client(studio.proxy) as asking:
        answered = await asking.audio.transcriptions.create(
            file=("spéech.wav", data, "audio/wav"),
            model="whisper",
            language="en",
            prompt="ünïcödé\r\n--and two lines",
            timestamp_granularities=["word", "segment"],
        )
    assert answered.text == "".join(WORDS)
    heard = studio.speech.heard[-1]
    assert heard == Heard(
        TRANSCRIPTIONS,
        ("spéech.wav", "audio/wav", sha256(data).hexdigest()),
        [
            *(("model", "whisper"), ("language", "en"), ("prompt", "ünïcödé\r\n--and two lines")),
            *(("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment")),
        ],
    )


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("/v1/audio/transcriptions", 24_000_000),
        # The largest file of OpenAI's API and of vLLM.
        ("/v2/speech/openai/audio/translations", 25 * 1024 * 1024),
    ],
)
async def test_a_file_of_25_mib_and_its_form_are_accepted(
    studio: Studio, path: str, size: int
) -> None:
    data = bytes(size)
    form = aiohttp.FormData({"model": "whisper", "prompt": "x" * 1_000})
    form.add_field("file", BytesIO(data), filename="a.wav", content_type="audio/wav")
    async with studio.proxy.http.post(path, data=form) as response:
        assert (await response.json())["text"] == "".join(WORDS)
    assert studio.speech.heard[-1].file[2] == sha256(data).hexdigest()


async def test_an_empty_model_in_a_form_leads_to_the_first_endpoint(studio: Studio) -> None:
    before = len(studio.first.heard)
    form = aiohttp.FormData({"model": ""})
    form.add_field("file", b"RIFF", filename="a.wav")
    async with studio.proxy.http.post("/audio/transcriptions", data=form) as response:
        # The engine's own message.
        assert (await response.json())["error"]["message"] == "another model"
    assert len(studio.first.heard) == before + 1


# The OpenAI client marks its translations as deprecated.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_a_translation_form_reaches_the_engine(studio: Studio) -> None:
    async with client(studio.proxy) as asking:
        answered = await asking.audio.translations.create(
            file=("a.mp3", b"\x00\r\n\xff"), model="whisper"
        )
    assert answered.text == "".join(WORDS)
    assert studio.speech.heard[-1].path == "/v1/audio/translations"
    assert studio.speech.heard[-1].file[2] == sha256(b"\x00\r\n\xff").hexdigest()


async def test_a_transcription_can_be_streamed(studio: Studio) -> None:
    async with client(studio.proxy) as asking:
        stream = await asking.audio.transcriptions.create(
            file=("a.wav", b"RIFF"), model="whisper", stream=True
        )
        events = [event async for event in stream]
    assert [event.delta for event in events if event.type == "transcript.text.delta"] == list(WORDS)
    assert events[-1].type == "transcript.text.done"


async def test_an_error_of_the_engine_is_passed_on(studio: Studio) -> None:
    async with client(studio.proxy) as asking:
        with pytest.raises(openai.BadRequestError, match="no file"):
            await asking.audio.transcriptions.create(file=("a.wav", b""), model="whisper")


@pytest.mark.parametrize("base", ["/v1", "/openai/v1"])
async def test_a_flat_path_selects_the_endpoint_by_the_model_of_the_form(
    studio: Studio, base: str
) -> None:
    async with client(studio.proxy, base) as asking:
        for model, server in (("other", studio.first), ("whisper", studio.speech)):
            before = len(server.heard)
            await asking.audio.transcriptions.create(file=("a.wav", b"RIFF"), model=model)
            assert len(server.heard) == before + 1
        with pytest.raises(openai.NotFoundError, match="`nobody` is not served by any endpoint"):
            await asking.audio.transcriptions.create(file=("a.wav", b"RIFF"), model="nobody")


async def test_a_form_without_a_model_goes_to_the_first_endpoint(studio: Studio) -> None:
    before = len(studio.first.heard)
    form = aiohttp.FormData()
    form.add_field("file", b"RIFF", filename="a.wav")
    async with studio.proxy.http.post("/v1/audio/transcriptions", data=form) as response:
        # The engine's own message.
        assert (await response.json())["error"]["message"] == "another model"
    assert len(studio.first.heard) == before + 1


async def test_the_path_of_an_endpoint_accepts_only_its_model(studio: Studio) -> None:
    async with client(studio.proxy) as asking:
        with pytest.raises(openai.NotFoundError, match="`other` is not served by endpoint speech"):
            await asking.audio.transcriptions.create(file=("a.wav", b"RIFF"), model="other")


async def test_a_queued_stream_receives_its_queue_position() -> None:
    async with serving(queue_timeout=3.0) as proxy:
        form = aiohttp.FormData({"stream": "true"})
        form.add_field("file", b"RIFF", filename="a.wav")
        async with proxy.http.post("/v1/audio/transcriptions", data=form) as response:
            assert await response.content.readline() == b": queued position=1\n"


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/audio/transcriptions", "application/json"),
        ("/audio/translations", "application/x-www-form-urlencoded"),
        ("/audio/transcriptions", "audio/wav"),
        ("/audio/transcriptions", "multipart/mixed; boundary=x"),
        ("/audio/transcriptions", ""),
        ("/chat/completions", "multipart/form-data; boundary=x"),
        ("/embeddings", "multipart/form-data; boundary=x"),
        ("/tokenize", "multipart/form-data; boundary=x"),
    ],
)
async def test_an_unsupported_content_type_is_415(
    studio: Studio, base: str, path: str, content_type: str
) -> None:
    before = [len(server.heard) for server in studio[1:]]
    answered: dict[str, Any] = {"content-type": content_type} if content_type else {}
    skip = ["content-type"] if not content_type else []
    url = f"{base}{path}"
    async with studio.proxy.http.post(
        url, data=b"{}", headers=answered, skip_auto_headers=skip
    ) as response:
        assert response.status == 415
        wanted = "multipart/form-data" if "audio" in path else "application/json"
        assert wanted in (await response.json())["error"]["message"]
    assert [len(server.heard) for server in studio[1:]] == before
