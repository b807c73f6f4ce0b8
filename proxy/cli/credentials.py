"""Keys and tokens of the commands: from a file, from a variable, or from a deprecated flag."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from proxy.cli.console import say
from proxy.wire.secret_file import (
    SecretFileError,
    UnsendableSecretError,
    check_secret,
    read_secrets,
)

EX_USAGE = 2
EX_CONFIG = 78

Token = Annotated[str | None, typer.Option(envvar="WORKER_TOKEN", hidden=True)]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar="WORKER_TOKEN_FILE",
        show_envvar=False,
        help="File with the worker token; must be readable only by its owner."
        " [WORKER_TOKEN_FILE, WORKER_TOKEN]",
    ),
]
ChatKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", hidden=True)]
ChatKeyFile = Annotated[
    Path | None,
    typer.Option(help="File with the API key in its first line. Or set OPENAI_API_KEY."),
]


def warn_of_flag(name: str, variable: str) -> None:
    """Print that a flag with a secret as its value is deprecated, and the alternatives."""
    flag = flag_of(name)
    say(
        f"vllm-serverless: {flag} is deprecated and will be removed in the next release, because"
        " other users can read its value in the process list."
        f" Use {flag}-file PATH or the variable {variable}."
    )


def overridden(name: str, given: dict[str, Any]) -> dict[str, None]:
    """Return None for the other source of a secret, so that a flag overrides that variable."""
    file = f"{name}_file"
    if (name in given) == (file in given):
        return {}
    return {(name if file in given else file): None}


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def from_command_line(context: typer.Context, name: str) -> bool:
    """Return True if a parameter was passed as a flag, not by its variable."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def secret_of(context: typer.Context, name: str, variable: str) -> str:
    """Return the secret from the parameter `name` or `{name}_file`, or an empty string.

    A flag overrides a variable, and a file overrides a value. Exits with status 2 if the file
    cannot be used, and with 78 if the secret cannot be sent in a header field.
    """
    value: str | None = context.params[name]
    path: Path | None = context.params[f"{name}_file"]
    is_flag = from_command_line(context, name)
    if value is not None and is_flag:
        warn_of_flag(name, variable)
    source = f"{flag_of(name)}-file"
    try:
        if path is None or (is_flag and not from_command_line(context, f"{name}_file")):
            source = flag_of(name) if is_flag else variable
            check_secret(value or "")
            return value or ""
        return read_secrets(path)[0]
    except SecretFileError as error:
        say(f"vllm-serverless: {source}: {error}")
        sys.exit(status_of(error))


def status_of(error: object) -> int:
    """Return the exit status for an invalid setting: 78 if a secret cannot be sent, else 2."""
    return EX_CONFIG if isinstance(error, UnsendableSecretError) else EX_USAGE


def worker_token_flags(context: typer.Context) -> dict[str, object]:
    """Return the parameters of the worker token that are flags; a worker inherits the variables."""
    if from_command_line(context, "token"):
        warn_of_flag("token", "WORKER_TOKEN")
    flags = ("token", "token_file")
    return {name: context.params[name] for name in flags if from_command_line(context, name)}
