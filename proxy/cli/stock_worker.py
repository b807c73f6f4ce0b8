"""The environment of a stock worker: what Runpod's platform would tell it, with this proxy in the platform's place."""

import shlex

PING_MILLIS = 10_000


def environment(
    url: str, endpoint: str, token: str, pod: str, ping_millis: int = PING_MILLIS
) -> dict[str, str]:
    """The variables. Every worker needs a `pod` of its own.

    The SDK puts its ids in where `$…` stands, and adds its parameters with `&`, so there has to be a `?` before.
    """
    base = f"{url.rstrip('/')}/v2/{endpoint}"
    return {
        "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=any",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=any",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=any",
        "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=any",
        "RUNPOD_PING_INTERVAL": str(ping_millis),
        "RUNPOD_AI_API_KEY": token,
        "RUNPOD_POD_ID": pod,
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    }


def env_file(told: dict[str, str]) -> str:
    """Return the lines of a file for `docker run --env-file`, which takes every value as it is."""
    return "\n".join(f"{name}={value}" for name, value in told.items())


def shown(told: dict[str, str], *, docker: bool) -> str:
    """As lines for a shell, or as flags of `docker run`; quoted, for what a `$` stands for is the SDK's to say."""
    lead, end = ("-e ", " \\\n") if docker else ("export ", "\n")
    return end.join(f"{lead}{name}={shlex.quote(value)}" for name, value in told.items())
