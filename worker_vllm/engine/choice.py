# ruff: noqa: PLC0415 - importing an engine that is not wanted costs seconds, or fails
"""Pick the engine that the settings name; the others are not even imported."""

from collections.abc import Sequence

from worker_vllm.engine.base import Engine
from worker_vllm.log import Stage
from worker_vllm.settings import Settings, read_environment


def make_engine(settings: Settings, arguments: Sequence[str], stage: Stage) -> Engine:
    """The engine, not yet started. `arguments` are flags for vLLM; `stage` hears what it does while it starts."""
    match settings.engine_kind:
        case "scripted":
            from worker_vllm.engine.scripted import SERVED_NAME, ScriptedEngine

            return ScriptedEngine(settings.served_model_name or SERVED_NAME, stage=stage)
        case "upstream":
            from worker_vllm.engine.upstream import UpstreamEngine

            return UpstreamEngine(
                settings.upstream, settings.upstream_key.get_secret_value(), stage
            )
        case "vllm":
            from worker_vllm.engine.vllm import VllmEngine

            return VllmEngine(settings, read_environment(), arguments, stage)
