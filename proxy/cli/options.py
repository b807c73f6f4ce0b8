"""The settings of the proxy from the flags of a command and from the environment."""

import sys
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from proxy.cli.console import say
from proxy.cli.credentials import flag_of, overridden, status_of, warn_of_flag
from proxy.settings import Settings, unknown_settings


def settings(**flags: Any) -> Settings:
    """Return the settings of the environment and of the flags that are not None or empty.

    Flags that are not settings of the proxy are ignored.
    Exits with `status_of` the error if one is invalid, after a line for each that is.
    """
    given = {
        name: value
        for name, value in flags.items()
        if name in Settings.model_fields and value not in (None, [])
    }
    for name, variable in (("api_key", "PROXY_API_KEY"), ("worker_token", "PROXY_WORKER_TOKEN")):
        if name in given:
            warn_of_flag(name, variable)
    try:
        return Settings(
            **given | overridden("worker_token", given) | overridden("webhook_secret", given)
        )
    except ValidationError as error:
        for wrong in error.errors():
            name = str(wrong["loc"][0]) if wrong["loc"] else ""
            where = f"{flag_of(name)} (PROXY_{name.upper()}): " if name else ""
            say(f"vllm-serverless: {where}{wrong['msg'].removeprefix('Value error, ')}")
        sys.exit(max(status_of(wrong.get("ctx", {}).get("error")) for wrong in error.errors()))


def warn_of_unknown_variables(prefix: str, known: Iterable[str]) -> None:
    """Print the variables with this prefix that are not settings: they have no effect."""
    for name, similar in unknown_settings(prefix, known).items():
        hint = f" Did you mean {similar}?" if similar else ""
        say(f"vllm-serverless: warning: {name} is not a setting, and has no effect.{hint}")
