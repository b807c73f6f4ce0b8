"""The commands. Each one builds `Settings` or the environment of a worker, and passes it on."""

import os
from secrets import token_hex
from typing import Annotated, Any

import typer
import uvloop

from proxy.access.keys import parted
from proxy.cli import credentials, options, stock_worker
from proxy.cli import worker as process
from proxy.cli.chat import run as run_chat
from proxy.cli.doctor import run as run_doctor
from proxy.cli.flags import PROXY_VARIABLES, proxy_flags, with_flags
from proxy.cli.up import run
from proxy.cli.usage import VLLM_FLAGS, ExplainingCommand, program
from proxy.cli.version import version_line
from proxy.cli.worker_flags import LOCAL_WORKER_FLAGS, WORKER_FLAGS, WORKER_VARIABLES
from proxy.log.lines import configure_logging

cli = typer.Typer(
    help="A serverless endpoint for vLLM: a proxy for OpenAI clients, and workers that dial in.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

# The deprecated, hidden flags of secrets are removed in the next release.
DEPRECATED = ("api_key", "worker_token")
VllmFlags = Annotated[
    list[str] | None,
    typer.Argument(
        metavar=VLLM_FLAGS,
        help="Flags for vLLM, the same as those of `vllm serve`.",
        show_default=False,
    ),
]
UP_EXAMPLES = """Examples:

vllm-serverless up --model Qwen/Qwen3-8B --port 8123 --workers 2 -- --max-model-len 8192

vllm-serverless up --upstream http://127.0.0.1:30000"""
PROXY_EXAMPLES = """Example:

vllm-serverless proxy --host 0.0.0.0 --api-key-file keys --endpoint default"""
WORKER_EXAMPLES = """Example:

vllm-serverless worker --connect https://proxy.example --model Qwen/Qwen3-8B -- --seed 7"""


def _print_version(is_given: bool) -> None:
    if is_given:
        typer.echo(version_line())
        raise typer.Exit


@cli.callback()
def main_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of this program, of Python and of vLLM, and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Receive the options that precede the command."""


@cli.command(cls=ExplainingCommand, epilog=UP_EXAMPLES)
@with_flags("Options of the proxy", [*proxy_flags(), *proxy_flags(*DEPRECATED)])
@with_flags("Options of the workers", LOCAL_WORKER_FLAGS)
def up(
    workers: Annotated[int, typer.Option(help="Number of local workers.", min=0)] = 1,
    vllm_flags: VllmFlags = None,
    **flags: Any,
) -> None:
    """Start the proxy and local workers. Without --model they serve a tiny demo model."""
    settings = options.settings(**flags)
    options.warn_of_unknown_variables("PROXY_", PROXY_VARIABLES)
    options.warn_of_unknown_variables("WORKER_", WORKER_VARIABLES)
    names = [flag.name for flag in LOCAL_WORKER_FLAGS]
    own = {name: flags[name] for name in (*names, "log_level")}
    # The terminal of `up` is for a person: unless a level is set, it shows warnings only.
    is_set = "log_level" in settings.model_fields_set
    configure_logging(settings.log_level if is_set else "warning")
    raise SystemExit(uvloop.run(run(settings, workers, own, vllm_flags or [])))


@cli.command(cls=ExplainingCommand, epilog=PROXY_EXAMPLES)
@with_flags("Options", [*proxy_flags(), *proxy_flags(*DEPRECATED)])
def proxy(**flags: Any) -> None:
    """Start only the proxy; workers dial in from any machine."""
    settings = options.settings(**flags)
    options.warn_of_unknown_variables("PROXY_", PROXY_VARIABLES)
    configure_logging(settings.log_level)
    raise SystemExit(uvloop.run(run(settings, 0, {}, [])))


@cli.command(cls=ExplainingCommand, epilog=WORKER_EXAMPLES)
@with_flags("Options", WORKER_FLAGS)
def worker(
    context: typer.Context,
    token_file: credentials.TokenFile = None,  # noqa: ARG001 - read from the context, as `token` is
    token: credentials.Token = None,  # noqa: ARG001
    vllm_flags: VllmFlags = None,
    **flags: Any,
) -> None:
    """Start a worker that dials in to a proxy and serves one of its endpoints."""
    environment = process.environment(**flags, **credentials.worker_token_flags(context))
    arguments = process.arguments(vllm_flags or [])
    os.execve(arguments[0], arguments, environment)  # noqa: S606 - no shell is wanted


@cli.command(cls=ExplainingCommand)
def chat(
    context: typer.Context,
    base_url: Annotated[
        str, typer.Option(help="Any OpenAI-compatible base URL.")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[
        str | None, typer.Option(help="Model id (default: the first one that is served).")
    ] = None,
    # Read from the context, as `api_key` is.
    api_key_file: credentials.ChatKeyFile = None,  # noqa: ARG001
    api_key: credentials.ChatKey = None,  # noqa: ARG001
    system: Annotated[str | None, typer.Option(help="System prompt of the conversation.")] = None,
) -> None:
    """Chat with a model in the terminal."""
    _, key = parted(credentials.secret_of(context, "api_key", "OPENAI_API_KEY"))
    raise SystemExit(run_chat(base_url, model, key or "none", system))


@cli.command(cls=ExplainingCommand)
@with_flags("Options", proxy_flags("port", "data_dir"))
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
    **flags: Any,
) -> None:
    """Check everything that a worker needs, and print how to fix what fails."""
    settings = options.settings(**flags)
    secret = credentials.secret_of(context, "token", "WORKER_TOKEN")
    raise SystemExit(run_doctor(connect, endpoint, secret, settings.port, settings.data_dir))


@cli.command(cls=ExplainingCommand)
@with_flags("Options", proxy_flags("data_dir"))
def token(**flags: Any) -> None:
    """Print the token that remote workers need (WORKER_TOKEN). It is generated at the first use."""
    typer.echo(options.settings(**flags).token())


@cli.command(cls=ExplainingCommand)
@with_flags("Options", proxy_flags("data_dir"))
def webhook_secret(**flags: Any) -> None:
    """Print the secret with which receivers verify webhooks. It is generated at the first use."""
    typer.echo(options.settings(**flags).signing_secret())


@cli.command(cls=ExplainingCommand)
@with_flags("Options", proxy_flags("port", "worker_token_file", "worker_token", "data_dir"))
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
    **flags: Any,
) -> None:
    """Print the environment with which any Runpod worker image serves an endpoint of this proxy."""
    settings = options.settings(**flags)
    url = connect or f"http://127.0.0.1:{settings.port}"
    variables = stock_worker.environment(url, endpoint, settings.token(), f"pod-{token_hex(4)}")
    if env_file:
        typer.echo(stock_worker.env_file(variables))
    else:
        typer.echo(stock_worker.shell_lines(variables, docker=docker))


def main() -> None:
    """Run the command line of this process."""
    cli(prog_name=program())
