# ruff: noqa: PLC0415 - importing an engine that is not used takes seconds, or fails
"""Select the engine that the settings name. The other engines are not imported."""

from collections.abc import Sequence

from worker_vllm.engine.base import Engine
from worker_vllm.log import Stage
from worker_vllm.settings import Settings, read_environment


def make_engine(settings: Settings, arguments: Sequence[str], stage: Stage) -> Engine:
    """Return the engine, not yet started.

    `arguments` are flags for vLLM; `stage` is called with the stages of the start.
    """
    match settings.engine_kind:
        case "scripted":
            from worker_vllm.engine.scripted import SERVED_NAME, ScriptedEngine

            return ScriptedEngine(settings.served_model_name or SERVED_NAME, stage=stage)
        case "upstream":
            from worker_vllm.engine.upstream import UpstreamEngine

            return UpstreamEngine(settings.upstream, settings.upstream_api_key, stage)
        case "vllm":
            from worker_vllm.engine.vllm import VllmEngine

            return VllmEngine(settings, read_environment(), arguments, stage)
