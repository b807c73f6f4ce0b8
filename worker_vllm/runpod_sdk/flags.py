"""Detect whether the Runpod SDK is requested, and separate its flags from those of vLLM."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from worker_vllm.settings import Settings


class Mode(Enum):
    """The ways in which the SDK calls the handler."""

    QUEUE = auto()
    """Take jobs from Runpod's platform, or from a server with the same API."""
    SERVE = auto()
    """`--rp_serve_api`: serve a local API for tests."""
    CALL = auto()
    """`--test_input`, or the realtime port: call the handler once per job, without streaming."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The mode, and the command-line arguments of the SDK and of the engine."""

    mode: Mode
    sdk: tuple[str, ...]
    engine: tuple[str, ...]


def read(settings: Settings, arguments: Sequence[str]) -> Wish | None:
    """Return the requested use of the SDK, or None if the worker shall dial a proxy.

    Runpod's platform sets its variables in every container, so `WORKER_CONNECT` takes precedence
    over them.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--rp_serve_api", "--rp_debugger"):
        parser.add_argument(name, action="store_true")
    for name in (
        "--test_input",
        "--rp_log_level",
        "--rp_api_host",
        "--rp_api_port",
        "--rp_api_concurrency",
    ):
        parser.add_argument(name)
    found, engine_arguments = parser.parse_known_args(list(arguments))
    sdk = tuple(_without(arguments, engine_arguments))
    engine = tuple(engine_arguments)
    if found.rp_serve_api:
        return Wish(Mode.SERVE, sdk, engine)
    if found.test_input is not None:
        return Wish(Mode.CALL, sdk, engine)
    if settings.connect:
        return None
    if settings.runpod_realtime_port:
        return Wish(Mode.CALL, sdk, engine)
    if settings.runpod_webhook_get_job:
        return Wish(Mode.QUEUE, sdk, engine)
    return None


def _without(arguments: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the arguments without the others, which appear in the same order."""
    rest = list(others)
    own = []
    for argument in arguments:
        if rest and rest[0] == argument:
            rest.pop(0)
        else:
            own.append(argument)
    return own
