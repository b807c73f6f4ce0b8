"""The flags that several commands share. The help text of each names its environment variable."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from proxy.cli.console import say
from proxy.cli.credentials import flag_of, overridden, status_of, warn_of_flag
from proxy.settings import Settings


def _help(setting: str) -> str:
    """Return the description of a setting and the name of its variable."""
    return f"{Settings.model_fields[setting].description} [PROXY_{setting.upper()}]"


Host = Annotated[str | None, typer.Option(help=_help("host"))]
Port = Annotated[int | None, typer.Option(help=_help("port"))]
# The hidden flags are deprecated and are removed in the next release.
ApiKey = Annotated[list[str] | None, typer.Option(hidden=True)]
ApiKeyFile = Annotated[Path | None, typer.Option(help=_help("api_key_file"))]
WorkerToken = Annotated[str | None, typer.Option(hidden=True)]
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
    typer.Option(help="Path or hub id of a model; `demo` is the bundled one. [WORKER_MODEL]"),
]
ServedModelName = Annotated[
    str | None, typer.Option(help="Model id that clients use. [WORKER_SERVED_MODEL_NAME]")
]
Upstream = Annotated[
    str | None,
    typer.Option(
        help="URL of an OpenAI-compatible server to use instead of vLLM. [WORKER_UPSTREAM]"
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        help="Loopback port of the engine's /metrics; further local workers use the ports after it."
        " [WORKER_METRICS_PORT]"
    ),
]
MaxConcurrency = Annotated[
    int | None, typer.Option(help="Concurrent calls per worker. [WORKER_MAX_CONCURRENCY]")
]


def settings(**flags: Any) -> Settings:
    """Return the settings of the environment and of the flags that are not None or empty.

    Exits with `status_of` the error if one is invalid, after a line for each that is.
    """
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
        sys.exit(max(status_of(wrong.get("ctx", {}).get("error")) for wrong in error.errors()))
