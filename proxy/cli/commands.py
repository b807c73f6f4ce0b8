"""The commands. Each one fills `Settings`, or a worker's environment, and hands over."""

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
    help="A serverless endpoint for vLLM: OpenAI clients in front, GPU workers that dial in behind.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

VllmFlags = Annotated[
    list[str] | None,
    typer.Argument(
        help="After `--`: flags for vLLM, as `vllm serve` takes them.", show_default=False
    ),
]


@cli.command()
def up(
    model: options.Model = None,
    workers: Annotated[int, typer.Option(help="How many local workers to run.", min=0)] = 1,
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
        port=port, host=host, api_key_file=api_key_file, api_key=api_key, worker_token_file=worker_token_file,
        worker_token=worker_token, endpoint=endpoint, data_dir=data_dir, store=store, cors_origin=cors_origin,
        webhook_allow=webhook_allow, allowed_host=allowed_host,
        queue_timeout=queue_timeout, drain=drain, log_level=log_level,
    )  # fmt: skip
    flags: dict[str, object] = {
        "model": model, "served_model_name": served_model_name, "upstream": upstream, "metrics_port": metrics_port,
        "max_concurrency": max_concurrency, "log_level": log_level,
    }  # fmt: skip
    configure_logging("warning" if log_level is None else log_level)  # a person reads this terminal
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
    """Start the proxy alone; workers dial in from wherever they are."""
    settings = options.settings(
        port=port, host=host, api_key_file=api_key_file, api_key=api_key, worker_token_file=worker_token_file,
        worker_token=worker_token, endpoint=endpoint, data_dir=data_dir, store=store, cors_origin=cors_origin,
        webhook_allow=webhook_allow, allowed_host=allowed_host,
        queue_timeout=queue_timeout, execution_timeout=execution_timeout, lease=lease, drain=drain,
        log_level=log_level,
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
        connect=connect, endpoint=endpoint, model=model, served_model_name=served_model_name, upstream=upstream,
        metrics_port=metrics_port, max_concurrency=max_concurrency, log_level=log_level,
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
        str | None, typer.Option(help="The model; without it the first one that is served.")
    ] = None,
    api_key_file: credentials.ChatKeyFile = None,  # noqa: ARG001 - read from the context, as `api_key` is
    api_key: credentials.ChatKey = None,  # noqa: ARG001
    system: Annotated[
        str | None, typer.Option(help="What the model is told before the conversation.")
    ] = None,
) -> None:
    """ChatterLimit with a model in the terminal."""
    _, key = parted(credentials.secret_of(context, "api_key", "OPENAI_API_KEY"))
    raise SystemExit(run_chat(base_url, model, key or "none", system))


@cli.command()
def doctor(
    context: typer.Context,
    connect: Annotated[
        str, typer.Option(envvar="WORKER_CONNECT", help="The proxy's URL, to look at that too.")
    ] = "",
    endpoint: Annotated[
        str, typer.Option(envvar="WORKER_ENDPOINT", help="The endpoint to serve.")
    ] = "default",
    token_file: credentials.TokenFile = None,  # noqa: ARG001 - read from the context, as `token` is
    token: credentials.Token = None,  # noqa: ARG001
    port: options.Port = None,
    data_dir: options.DataDir = None,
) -> None:
    """Look at what a worker needs, and say how to mend what is wrong."""
    settings = options.settings(port=port, data_dir=data_dir)
    secret = credentials.secret_of(context, "token", "WORKER_TOKEN")
    raise SystemExit(run_doctor(connect, endpoint, secret, settings.port, settings.data_dir))


@cli.command()
def token(data_dir: options.DataDir = None) -> None:
    """Print the worker token, which a worker elsewhere needs (WORKER_TOKEN). Made if there is none yet."""
    typer.echo(options.settings(data_dir=data_dir).token())


@cli.command()
def webhook_secret(data_dir: options.DataDir = None) -> None:
    """Print the secret that webhooks are signed with, for those who verify them. Made if there is none yet."""
    typer.echo(options.settings(data_dir=data_dir).signing_secret())


@cli.command()
def worker_env(
    endpoint: Annotated[str, typer.Argument(help="The endpoint to serve.")] = "default",
    connect: Annotated[
        str | None, typer.Option(help="The proxy's URL, as the worker reaches it.")
    ] = None,
    env_file: Annotated[
        bool,
        typer.Option(
            "--env-file",
            help="As a file for `docker run --env-file`, which keeps the token private.",
        ),
    ] = False,
    docker: Annotated[
        bool,
        typer.Option(
            "--docker",
            help="As `-e` flags for `docker run`; others can read these. See --env-file.",
        ),
    ] = False,
    port: options.Port = None,
    worker_token_file: options.WorkerTokenFile = None,
    worker_token: options.WorkerToken = None,
    data_dir: options.DataDir = None,
) -> None:
    """Print the environment with which any Runpod worker image serves an endpoint here."""
    settings = options.settings(
        port=port, worker_token_file=worker_token_file, worker_token=worker_token, data_dir=data_dir
    )
    url = connect or f"http://127.0.0.1:{settings.port}"
    told = stock_worker.environment(url, endpoint, settings.token(), f"pod-{token_hex(4)}")
    typer.echo(stock_worker.env_file(told) if env_file else stock_worker.shown(told, docker=docker))


def main() -> None:
    """The console script."""
    cli()
