"""Proxy and worker also run beside Runpod's newest SDK, whose FastAPI vLLM does not accept."""

from pathlib import Path

import openai
import pytest
from harness.proxy.command import command
from harness.proxy.server import chat
from harness.tools.environments import python


async def test_up_serves_in_the_environment_of_the_sdk(tmp_path: Path) -> None:
    flags = ("--port", "0", "--data-dir", str(tmp_path))
    async with command("up", *flags, python=python(".venv-sdk"), WORKER_ENGINE="scripted") as up:
        url = (await up.says(r"base URL\s+(http://\S+)")).group(1)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            assert [model.id for model in (await client.models.list()).data] == ["scripted"]
            whole = await client.chat.completions.create(**chat())
            stream = await client.chat.completions.create(**chat(stream=True))
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(pieces) == whole.choices[0].message.content
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(**chat(model="unknown"))
        assert await up.stop() == 0
