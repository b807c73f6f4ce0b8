"""The flags that several commands share. Each names its environment twin; a flag that is not given changes nothing."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from proxy.cli.console import say
from proxy.cli.credentials import EX_USAGE, flag_of, overridden, warn_of_flag
from proxy.settings import Settings


def _help(setting: str) -> str:
    """The setting's own description, and its variable."""
    return f"{Settings.model_fields[setting].description} [PROXY_{setting.upper()}]"


Host = Annotated[str | None, typer.Option(help=_help("host"))]
Port = Annotated[int | None, typer.Option(help=_help("port"))]
ApiKey = Annotated[list[str] | None, typer.Option(hidden=True)]  # for one more release
ApiKeyFile = Annotated[Path | None, typer.Option(help=_help("api_key_file"))]
WorkerToken = Annotated[str | None, typer.Option(hidden=True)]  # for one more release
WorkerTokenFile = Annotated[Path | None, typer.Option(help=_help("worker_token_file"))]
Endpoints = Annotated[list[str] | None, typer.Option(help=_help("endpoint") + " Repeatable.")]
DataDir = Annotated[Path | None, typer.Option(help=_help("data_dir"))]
Store = Annotated[str | None, typer.Option(help=_help("store"))]
CorsOrigin = Annotated[list[str] | None, typer.Option(help=_help("cors_origin") + " Repeatable.")]
WebhookAllow = Annotated[
    list[str] | None, typer.Option(help=_help("webhook_allow") + " Repeatable.")
]
AllowedHost = Annotated[list[str] | None, typer.Option(help=_help("allowed_host") + " Repeatable.")]
QueueTimeout = Annotated[float | None, typer.Option(help=_help("queue_timeout"))]
ExecutionTimeout = Annotated[float | None, typer.Option(help=_help("execution_timeout"))]
Lease = Annotated[float | None, typer.Option(help=_help("lease"))]
Drain = Annotated[float | None, typer.Option(help=_help("drain"))]
LogLevel = Annotated[str | None, typer.Option(help=_help("log_level"))]

Model = Annotated[
    str | None,
    typer.Option(help="Path or hub id of a model; `demo` is the bundled toy. [WORKER_MODEL]"),
]
ServedModelName = Annotated[
    str | None, typer.Option(help="Name that clients use for it. [WORKER_SERVED_MODEL_NAME]")
]
Upstream = Annotated[
    str | None,
    typer.Option(help="Serve another OpenAI-compatible server instead of vLLM. [WORKER_UPSTREAM]"),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        help="Loopback port for the engine's /metrics; a second local worker takes the next one. [WORKER_METRICS_PORT]"
    ),
]
MaxConcurrency = Annotated[
    int | None, typer.Option(help="Calls that a worker runs at once. [WORKER_MAX_CONCURRENCY]")
]


def settings(**flags: Any) -> Settings:
    """Settings from the environment and the flags that were given; ends the program with one line when one is wrong."""
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    for name, variable in (("api_key", "PROXY_API_KEY"), ("worker_token", "PROXY_WORKER_TOKEN")):
        if name in given:
            warn_of_flag(name, variable)
    try:
        return Settings(**given | overridden("worker_token", given))
    except ValidationError as error:
        for wrong in error.errors():
            name = str(wrong["loc"][0]) if wrong["loc"] else ""
            where = f"{flag_of(name)} (PROXY_{name.upper()}): " if name else ""
            say(f"vllm-serverless: {where}{wrong['msg'].removeprefix('Value error, ')}")
        sys.exit(EX_USAGE)
