"""The start of a worker with an upstream server: wait for a server that is starting, and only then.

A server that loads its model refuses connections or responds with 5xx. Every other response means
that the address, the key or the kind of server is wrong, which waiting does not change.
"""

import os
from http import HTTPStatus

import aiohttp

from worker_vllm.engine.base import MODELS_PATH, EngineError
from worker_vllm.engine.health import BUSY_STATUSES, FAILURE_STATUS_MIN, Health

CHECK = "Check WORKER_UPSTREAM (--upstream)"


async def reason_to_wait(health: Health, url: str) -> str:
    """Ask the server for its models; return why it is not ready yet, or an empty string if it is.

    Raises EngineError if the response will not change.
    """
    try:
        status = await health.status(MODELS_PATH)
    except TimeoutError:
        return "no answer"
    except aiohttp.ClientConnectorCertificateError as error:
        reason = error.certificate_error
        raise EngineError(f"the TLS certificate of {url} is not valid: {reason}. {CHECK}") from None
    except aiohttp.ClientSSLError:
        raise EngineError(
            f"{url} does not answer with TLS; use http:// if it has none. {CHECK}"
        ) from None
    except aiohttp.ClientConnectorDNSError:
        return "its host name is unknown"
    except aiohttp.ClientConnectorError as error:
        number = error.os_error.errno
        return os.strerror(number).lower() if number else "no connection"
    except aiohttp.ClientResponseError:
        raise EngineError(f"{url} does not answer with HTTP. {CHECK}") from None
    except (aiohttp.ClientError, OSError):
        return "the connection was lost"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise EngineError(
            f"{url} rejects the API key with status {status}."
            " Check WORKER_UPSTREAM_KEY (--upstream-key-file)"
        )
    is_failure = status >= FAILURE_STATUS_MIN and status != HTTPStatus.NOT_IMPLEMENTED
    if status in BUSY_STATUSES or is_failure:
        return f"it answers {status}"
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        raise EngineError(
            f"{url} is not an OpenAI-compatible server: it answers {status} to GET {MODELS_PATH}."
            f" {CHECK}"
        )
    return ""
