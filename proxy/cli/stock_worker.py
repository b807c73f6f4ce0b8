"""The environment of a Runpod worker: the variables of Runpod's platform, for this proxy."""

import shlex

PING_MILLIS = 10_000


def environment(
    url: str, endpoint: str, token: str, pod: str, ping_millis: int = PING_MILLIS
) -> dict[str, str]:
    """Return the variables of one worker. `pod` must be unique among the workers.

    The SDK substitutes `$ID` and `$RUNPOD_POD_ID`, and appends parameters with `&`, so every URL
    needs a query.
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


def env_file(variables: dict[str, str]) -> str:
    """Return the lines of a file for `docker run --env-file`, which does not interpret values."""
    return "\n".join(f"{name}={value}" for name, value in variables.items())


def shell_lines(variables: dict[str, str], *, docker: bool) -> str:
    """Return `export` lines for a shell, or `-e` flags of `docker run`.

    The values are quoted: the SDK, not the shell, substitutes `$ID`.
    """
    lead, end = ("-e ", " \\\n") if docker else ("export ", "\n")
    return end.join(f"{lead}{name}={shlex.quote(value)}" for name, value in variables.items())
