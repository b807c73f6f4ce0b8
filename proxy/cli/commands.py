"""The commands. Each one builds `Settings` or the environment of a worker, and passes it on."""

import os
from secrets import token_hex
from typing import Annotated

import typer
import uvloop

from proxy.access.keys import parted
from proxy.cli import credentials, options, stock_worker
from proxy.cli import worker as process
from proxy.cli.chat import run as run_chat
from proxy.cli.doctor import run as run_doctor
from proxy.cli.up import run
from proxy.log.lines import configure_logging

cli = typer.Typer(
    help="A serverless endpoint for vLLM: a proxy for OpenAI clients, and workers that dial in.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

VllmFlags = Annotated[
    list[str] | None,
    typer.Argument(
        help="After `--`: flags for vLLM, the same as those of `vllm serve`.", show_default=False
    ),
]


@cli.command()
def up(
    model: options.Model = None,
    workers: Annotated[int, typer.Option(help="Number of local workers.", min=0)] = 1,
    port: options.Port = None,
    host: options.Host = None,
    api_key_file: options.ApiKeyFile = None,
    api_key: options.ApiKey = None,
    worker_token_file: options.WorkerTokenFile = None,
    worker_token: options.WorkerToken = None,
    served_model_name: options.ServedModelName = None,
    upstream: options.Upstream = None,
    endpoint: options.Endpoints = None,
    data_dir: options.DataDir = None,
    store: options.Store = None,
    cors_origin: options.CorsOrigin = None,
    webhook_allow: options.WebhookAllow = None,
    allowed_host: options.AllowedHost = None,
    queue_timeout: options.QueueTimeout = None,
    drain: options.Drain = None,
    metrics_port: options.MetricsPort = None,
    max_concurrency: options.MaxConcurrency = None,
    log_level: options.LogLevel = None,
    vllm_flags: VllmFlags = None,
) -> None:
    """Start the proxy and local workers. Without --model they serve a tiny demo model."""
    settings = options.settings(
        port=port, host=host, api_key_file=api_key_file, api_key=api_key,
        worker_token_file=worker_token_file, worker_token=worker_token, endpoint=endpoint,
        data_dir=data_dir, store=store, cors_origin=cors_origin, webhook_allow=webhook_allow,
        allowed_host=allowed_host, queue_timeout=queue_timeout, drain=drain, log_level=log_level,
    )  # fmt: skip
    flags: dict[str, object] = {
        "model": model, "served_model_name": served_model_name, "upstream": upstream,
        "metrics_port": metrics_port, "max_concurrency": max_concurrency, "log_level": log_level,
    }  # fmt: skip
    # The terminal of `up` is for a person: without a flag it shows warnings only.
    configure_logging("warning" if log_level is None else log_level)
    raise SystemExit(uvloop.run(run(settings, workers, flags, vllm_flags or [])))


@cli.command()
def proxy(
    port: options.Port = None,
    host: options.Host = None,
    api_key_file: options.ApiKeyFile = None,
    api_key: options.ApiKey = None,
    worker_token_file: options.WorkerTokenFile = None,
    worker_token: options.WorkerToken = None,
    endpoint: options.Endpoints = None,
    data_dir: options.DataDir = None,
    store: options.Store = None,
    cors_origin: options.CorsOrigin = None,
    webhook_allow: options.WebhookAllow = None,
    allowed_host: options.AllowedHost = None,
    queue_timeout: options.QueueTimeout = None,
    execution_timeout: options.ExecutionTimeout = None,
    lease: options.Lease = None,
    drain: options.Drain = None,
    log_level: options.LogLevel = None,
) -> None:
    """Start only the proxy; workers dial in from any machine."""
    settings = options.settings(
        port=port, host=host, api_key_file=api_key_file, api_key=api_key,
        worker_token_file=worker_token_file, worker_token=worker_token, endpoint=endpoint,
        data_dir=data_dir, store=store, cors_origin=cors_origin, webhook_allow=webhook_allow,
        allowed_host=allowed_host, queue_timeout=queue_timeout, lease=lease, drain=drain,
        execution_timeout=execution_timeout, log_level=log_level,
    )  # fmt: skip
    configure_logging(settings.log_level)
    raise SystemExit(uvloop.run(run(settings, 0, {}, [])))


@cli.command()
def worker(
    context: typer.Context,
    connect: Annotated[str | None, typer.Option(help="The proxy's URL. [WORKER_CONNECT]")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="The endpoint to serve. [WORKER_ENDPOINT]")
    ] = None,
    model: options.Model = None,
    served_model_name: options.ServedModelName = None,
    upstream: options.Upstream = None,
    token_file: credentials.TokenFile = None,  # noqa: ARG001 - read from the context, as `token` is
    token: credentials.Token = None,  # noqa: ARG001
    metrics_port: options.MetricsPort = None,
    max_concurrency: options.MaxConcurrency = None,
    log_level: options.LogLevel = None,
    vllm_flags: VllmFlags = None,
) -> None:
    """Start a worker that dials in to a proxy and serves one of its endpoints."""
    environment = process.environment(
        connect=connect, endpoint=endpoint, model=model, served_model_name=served_model_name,
        upstream=upstream, metrics_port=metrics_port, max_concurrency=max_concurrency,
        log_level=log_level,
        **credentials.worker_token_flags(context),
    )  # fmt: skip
    arguments = process.arguments(vllm_flags or [])
    os.execve(arguments[0], arguments, environment)  # noqa: S606 - no shell is wanted


@cli.command()
def chat(
    context: typer.Context,
    base_url: Annotated[
        str, typer.Option(help="Any OpenAI-compatible base URL.")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[
        str | None, typer.Option(help="Model id (default: the first one that is served).")
    ] = None,
    api_key_file: credentials.ChatKeyFile = None,  # noqa: ARG001 - read from the context, as `api_key` is
    api_key: credentials.ChatKey = None,  # noqa: ARG001
    system: Annotated[str | None, typer.Option(help="System prompt of the conversation.")] = None,
) -> None:
    """Chat with a model in the terminal."""
    _, key = parted(credentials.secret_of(context, "api_key", "OPENAI_API_KEY"))
    raise SystemExit(run_chat(base_url, model, key or "none", system))


@cli.command()
def doctor(
    context: typer.Context,
    connect: Annotated[
        str, typer.Option(envvar="WORKER_CONNECT", help="The proxy's URL, to check that as well.")
    ] = "",
    endpoint: Annotated[
        str, typer.Option(envvar="WORKER_ENDPOINT", help="The endpoint to serve.")
    ] = "default",
    token_file: credentials.TokenFile = None,  # noqa: ARG001 - read from the context, as `token` is
    token: credentials.Token = None,  # noqa: ARG001
    port: options.Port = None,
    data_dir: options.DataDir = None,
) -> None:
    """Check everything that a worker needs, and print how to fix what fails."""
    settings = options.settings(port=port, data_dir=data_dir)
    secret = credentials.secret_of(context, "token", "WORKER_TOKEN")
    raise SystemExit(run_doctor(connect, endpoint, secret, settings.port, settings.data_dir))


@cli.command()
def token(data_dir: options.DataDir = None) -> None:
    """Print the token that remote workers need (WORKER_TOKEN). It is generated at the first use."""
    typer.echo(options.settings(data_dir=data_dir).token())


@cli.command()
def webhook_secret(data_dir: options.DataDir = None) -> None:
    """Print the secret with which receivers verify webhooks. It is generated at the first use."""
    typer.echo(options.settings(data_dir=data_dir).signing_secret())


@cli.command()
def worker_env(
    endpoint: Annotated[str, typer.Argument(help="The endpoint to serve.")] = "default",
    connect: Annotated[
        str | None, typer.Option(help="The proxy's URL, as seen from the worker.")
    ] = None,
    env_file: Annotated[
        bool,
        typer.Option(
            "--env-file",
            help="Print a file for `docker run --env-file`, which keeps the token private.",
        ),
    ] = False,
    docker: Annotated[
        bool,
        typer.Option(
            "--docker",
            help="Print `-e` flags for `docker run`. Other users can read them; see --env-file.",
        ),
    ] = False,
    port: options.Port = None,
    worker_token_file: options.WorkerTokenFile = None,
    worker_token: options.WorkerToken = None,
    data_dir: options.DataDir = None,
) -> None:
    """Print the environment with which any Runpod worker image serves an endpoint of this proxy."""
    settings = options.settings(
        port=port, worker_token_file=worker_token_file, worker_token=worker_token, data_dir=data_dir
    )
    url = connect or f"http://127.0.0.1:{settings.port}"
    variables = stock_worker.environment(url, endpoint, settings.token(), f"pod-{token_hex(4)}")
    if env_file:
        typer.echo(stock_worker.env_file(variables))
    else:
        typer.echo(stock_worker.shell_lines(variables, docker=docker))


def main() -> None:
    """Run the console script `vllm-serverless`."""
    cli()
