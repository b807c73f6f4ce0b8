"""Whether the stock SDK is wanted, and which command-line flags are its own; the others are vLLM's."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from worker_vllm.settings import Settings


class Mode(Enum):
    """What the SDK does with the handler."""

    QUEUE = auto()  # takes jobs from Runpod's platform, or from whatever speaks like it
    SERVE = auto()  # `--rp_serve_api`: a local API for trying things out
    CALL = (
        auto()
    )  # `--test_input`, or its realtime port: calls the handler once a job, and streams nothing


@dataclass(frozen=True, slots=True)
class Wish:
    """A mode, the SDK's own arguments and the engine's."""

    mode: Mode
    sdk: tuple[str, ...]
    engine: tuple[str, ...]


def read(settings: Settings, arguments: Sequence[str]) -> Wish | None:
    """What is wanted of the SDK; None: nothing, the worker dials in to a proxy.

    Runpod's platform sets its variables everywhere, so somebody who names a proxy to dial means that.
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
    found, engine = parser.parse_known_args(list(arguments))
    sdk = tuple(_without(arguments, engine))
    if found.rp_serve_api:
        return Wish(Mode.SERVE, sdk, tuple(engine))
    if found.test_input is not None:
        return Wish(Mode.CALL, sdk, tuple(engine))
    if settings.connect:
        return None
    if settings.runpod_realtime_port:
        return Wish(Mode.CALL, sdk, tuple(engine))
    if settings.runpod_webhook_get_job:
        return Wish(Mode.QUEUE, sdk, tuple(engine))
    return None


def _without(arguments: Sequence[str], others: Sequence[str]) -> list[str]:
    """The arguments that are not the others; both keep their order."""
    rest = list(others)
    own = []
    for argument in arguments:
        if rest and rest[0] == argument:
            rest.pop(0)
        else:
            own.append(argument)
    return own
