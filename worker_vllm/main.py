"""The worker's process: read the settings, then serve a proxy, or run under the Runpod SDK."""

import sys
from collections.abc import Sequence

import structlog

from proxy.wire.escaping import escape_controls
from worker_vllm import worker
from worker_vllm.ending import Ended
from worker_vllm.log import configure_logging
from worker_vllm.runpod_sdk import flags, runtime
from worker_vllm.settings import SettingsError, read_settings, unknown_settings


def main(arguments: Sequence[str]) -> int:
    """Run a worker and return its exit status. `arguments` are flags for vLLM or for the SDK."""
    try:
        ended = _run(arguments)
    except SettingsError as error:
        print(escape_controls(str(error)), file=sys.stderr)
        return error.status
    if ended.line:
        print(escape_controls(ended.line), file=sys.stderr)
    structlog.get_logger().info("worker.ended", code=ended.code)
    return ended.code


def _run(arguments: Sequence[str]) -> Ended:
    settings = read_settings()
    configure_logging(settings.log_level)
    for name, similar in unknown_settings().items():
        reason = "it is not a setting" + (f"; did you mean {similar}?" if similar else "")
        structlog.get_logger().warning("worker.variable_ignored", variable=name, reason=reason)
    wish = flags.read(settings, arguments)
    return worker.run(settings, arguments) if wish is None else runtime.run(settings, wish)
