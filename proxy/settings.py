"""All settings of the proxy, read from `PROXY_*` variables. A flag overrides its variable."""

import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from proxy.access.encryption import is_key, new_key
from proxy.access.keys import Kind, StoredKey, parted, stored_key
from proxy.access.limits import LIMITS, REQUESTS_PER_WORKER, Limit, read_limit
from proxy.access.startup_check import refusal
from proxy.api.openai.relay import HeartbeatIntervals
from proxy.api.openai.stream_events import HeartbeatForm, StreamForm
from proxy.channel.runpod.tracking import RunpodTimeouts
from proxy.edge.connections import Pace
from proxy.edge.head import Hosts
from proxy.jobs.model import EndpointId, Millis
from proxy.service.endpoints import Endpoint
from proxy.service.stuck import GRACE_SECONDS
from proxy.setting_types import (
    MEMORY,
    SQLITE,
    ApiKeys,
    ApiKeysInFile,
    CorsOrigins,
    EndpointIds,
    HostNames,
    Limits,
    LogLevel,
    Receivers,
    Store,
    TokenInFile,
    WebhookSecret,
    WebhookSecretInFile,
)
from proxy.webhooks.signature import KEY_BYTES, format_secret
from proxy.webhooks.url_policy import Allowed
from proxy.wire.frames import LEASE_SECONDS
from proxy.wire.misspelling import unknown_variables
from proxy.wire.secret_file import SecretFileError, stored_secret

PROXY_SECRETS = (
    *("PROXY_API_KEY", "PROXY_API_KEY_FILE", "PROXY_WORKER_TOKEN", "PROXY_WORKER_TOKEN_FILE"),
    *("PROXY_WEBHOOK_SECRET", "PROXY_WEBHOOK_SECRET_FILE"),
)
# Each secret of a worker has two variables, of which a worker accepts one.
WORKER_SECRETS = (
    ("WORKER_TOKEN", "WORKER_TOKEN_FILE"),
    ("WORKER_UPSTREAM_KEY", "WORKER_UPSTREAM_KEY_FILE"),
)
WORKER_TOKEN_FILE_NAME = "worker-token"  # noqa: S105 - the name of a file in the data directory
# Every store can represent a timeout of this length in milliseconds.
TIMEOUT_MAX_SECONDS = 31_536_000
BODY_BUDGET_DEFAULT_BYTES = 256 * 1024 * 1024
BODY_BUDGET_MIN_BYTES = 32 * 1024 * 1024


class Settings(BaseSettings):
    """The configuration of the proxy. In a variable, list items are separated by spaces."""

    model_config = SettingsConfigDict(
        env_prefix="PROXY_", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Every address but loopback requires an API key.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 selects a free port.")
    api_key: ApiKeys = Field([], description="API key of clients, as [OWNER=]KEY.")
    api_key_file: ApiKeysInFile = Field(
        (),
        description="File with one [OWNER=]KEY per line; must be readable only by its owner.",
    )
    worker_token: SecretStr | None = Field(
        None, description="Token of workers (default: generated, stored in the data directory)."
    )
    worker_token_file: TokenInFile = Field(
        None, description="File with the worker token; must be readable only by its owner."
    )
    endpoint: EndpointIds = Field(
        ["default"], description="Endpoint to serve, as ID or ID=MODEL,..."
    )
    data_dir: Path = Field(
        Path(".data"), description="Directory of jobs, generated secrets and logs of local workers."
    )
    store: Store = Field(
        "",
        description="Job store: sqlite:///PATH or memory: (default: jobs.db in --data-dir).",
    )
    cors_origin: CorsOrigins = Field(
        [], description="Origin whose web pages may call the proxy, or * for all origins."
    )
    webhook_secret: WebhookSecret = Field(
        None, description="Secret that signs webhooks (default: generated and stored)."
    )
    webhook_secret_file: WebhookSecretInFile = Field(
        None, description="File with the secret that signs webhooks; readable only by its owner."
    )
    webhook_allow: Receivers = Field(
        [], description="Private host or network that webhooks may be sent to."
    )
    queue_timeout: float = Field(
        300.0,
        gt=0,
        le=TIMEOUT_MAX_SECONDS,
        description="Seconds that an OpenAI call waits for a worker before it fails with 503.",
    )
    execution_timeout: float = Field(
        600.0,
        gt=0,
        le=TIMEOUT_MAX_SECONDS,
        description="Seconds that one run of a call or job may take.",
    )
    retry_grace: float = Field(
        15.0, ge=0, description="Seconds that a call runs on without its client, for a retry."
    )
    max_queued: int = Field(
        10_000, gt=0, description="Queued jobs per endpoint; further jobs are rejected with 429."
    )
    limit: Limits = Field(
        [],
        description=(
            "Rate limit per key, as OPERATION=REQUESTS[/CONCURRENT]: requests per 10 seconds, and"
            " concurrent requests. 0 removes a limit; OPERATION=0 removes both."
        ),
    )
    limit_per_worker: int = Field(
        REQUESTS_PER_WORKER,
        ge=0,
        description=(
            "Requests per 10 s for each ready worker, if this is more than the limit of the"
            " operation."
        ),
    )
    allowed_host: HostNames = Field(
        [],
        description=(
            "Host name that clients may use (default: any name if an API key is required,"
            " otherwise loopback names only)."
        ),
    )
    max_connections: int | None = Field(
        None,
        gt=0,
        description="Maximum concurrent client connections (default: limited by file descriptors).",
    )
    body_budget: int = Field(
        BODY_BUDGET_DEFAULT_BYTES,
        ge=BODY_BUDGET_MIN_BYTES,
        description="Bytes of memory for all request bodies; further ones are rejected with 503.",
    )
    head_timeout: float = Field(10.0, gt=0, description="Seconds for a request's head to arrive.")
    body_grace: float = Field(
        10.0, gt=0, description="Window, in seconds, for the minimum upload rate of 1 KB/s."
    )
    body_timeout: float = Field(
        120.0, gt=0, description="Seconds in which the body of a request must arrive."
    )
    clock_grace: float = Field(
        600.0,
        ge=0,
        description=(
            "Seconds in which no job expires after a start at which the clock may be ahead."
        ),
    )
    drain: float = Field(30.0, ge=0, description="Seconds for calls to finish at shutdown.")
    lease: float = Field(
        LEASE_SECONDS, gt=0, description="Seconds without a message until a worker is lost."
    )
    stop_grace: float = Field(
        GRACE_SECONDS,
        gt=0,
        description="Seconds in which a cancelled run must stop, or its local worker is restarted.",
    )
    poll_hold: float = Field(
        20.0, gt=0, lt=60, description="Long-poll timeout of Runpod workers, in seconds."
    )
    ping_lease: float = Field(
        35.0,
        gt=0,
        description=(
            "Seconds without a ping or another request until a Runpod worker is declared lost."
        ),
    )
    line_gap: float = Field(
        10.0,
        gt=0,
        description="Seconds after its process exits before a Runpod worker is declared lost.",
    )
    heartbeat: StreamForm = Field("auto", description="Heartbeats: auto, chunk, comment or off.")
    heartbeat_first: float = Field(
        1.0, gt=0, description="Seconds until a queued stream receives its first heartbeat."
    )
    heartbeat_queued: float = Field(
        5.0, gt=0, description="Seconds between the heartbeats of a queued stream."
    )
    heartbeat_silent: float = Field(
        15.0, gt=0, description="Seconds without output until a running stream gets a heartbeat."
    )
    fast_lane: Literal["on", "off"] = Field(
        "on", description="The fast lane for plain OpenAI calls: on or off."
    )
    log_level: LogLevel = Field("info", description="Log level: debug, info, warning or error.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        """Reject a secret that is given both as a value and as a file."""
        for name in ("worker_token", "webhook_secret"):
            if getattr(self, name) is not None and getattr(self, f"{name}_file") is not None:
                variable = f"PROXY_{name.upper()}"
                flag = f"--{name.replace('_', '-')}-file"
                raise ValueError(
                    f"{variable} and {flag} ({variable}_FILE) are both set: unset one of them"
                )
        return self

    def endpoints(self) -> list[Endpoint]:
        return [self._endpoint(text) for text in self.endpoint]

    def _endpoint(self, text: str) -> Endpoint:
        endpoint_id, _, models = text.partition("=")
        return Endpoint(
            EndpointId(endpoint_id),
            models=tuple(model for model in models.split(",") if model),
            queue_timeout=Millis(int(self.queue_timeout * 1000)),
            execution_timeout=Millis(int(self.execution_timeout * 1000)),
            max_queued=self.max_queued,
        )

    def limits(self) -> dict[str, Limit]:
        """Return the rate limits of one key on one endpoint, by operation."""
        return LIMITS | dict(read_limit(text) for text in self.limit)

    def hosts(self) -> Hosts:
        """Return the values of the `Host` header that the proxy accepts."""
        return Hosts(
            frozenset(name.lower().encode() for name in self.allowed_host),
            is_open=not self.client_keys(),
        )

    def pace(self) -> Pace:
        """Return the timeouts for receiving a request."""
        return Pace(self.head_timeout, self.body_grace, self.body_timeout)

    def intervals(self) -> HeartbeatIntervals:
        """Return the intervals of the heartbeats that clients of streams receive."""
        seconds = (self.heartbeat_first, self.heartbeat_queued, self.heartbeat_silent)
        return HeartbeatIntervals(*seconds, HeartbeatForm(self.heartbeat))

    def runpod_timeouts(self) -> RunpodTimeouts:
        return RunpodTimeouts(self.poll_hold, self.ping_lease, self.line_gap)

    def client_keys(self) -> list[str]:
        """Return all client keys, as `[OWNER=]KEY`, from `api_key` and `api_key_file`."""
        return [key.get_secret_value() for key in (*self.api_key, *self.api_key_file)]

    def keys(self, worker_token: str) -> list[StoredKey]:
        """Return the digests of all client keys and of the worker token."""
        clients = [stored_key(key, Kind.CLIENT) for key in self.client_keys()]
        return [*clients, stored_key(f"workers={worker_token}", Kind.WORKER)]

    def owners(self) -> set[str]:
        """Return the owners of all client keys; one owner can have several keys."""
        return {stored_key(key, Kind.CLIENT).principal.owner for key in self.client_keys()}

    def store_file(self) -> Path | None:
        """Return the path of the SQLite database, or None for the store in memory."""
        if self.store == MEMORY:
            return None
        if not self.store:
            return self.data_dir / "jobs.db"
        return Path(self.store.removeprefix(SQLITE)).expanduser()

    def refusal(self) -> str | None:
        """Return the reason why the proxy must not start with these settings, or None.

        Raises OSError if the stored worker token cannot be read.
        """
        path = self.data_dir / WORKER_TOKEN_FILE_NAME
        stored = path.read_text(errors="surrogateescape").strip() if path.exists() else ""
        configured = self._configured_token()
        token = (stored or None) if configured is None else configured.get_secret_value()
        return refusal(self.host, [parted(key) for key in self.client_keys()], token)

    def token(self) -> str:
        """Return the worker token; generate and store it if neither a setting nor a file has it."""
        return self._stored_secret(
            WORKER_TOKEN_FILE_NAME, self._configured_token(), lambda: secrets.token_urlsafe(32)
        )

    def _configured_token(self) -> SecretStr | None:
        return self.worker_token if self.worker_token is not None else self.worker_token_file

    def signing_secret(self) -> str:
        """Return the secret that signs webhooks, in the format that receivers configure."""
        return self._stored_secret(
            "webhook-secret",
            self.webhook_secret if self.webhook_secret is not None else self.webhook_secret_file,
            lambda: format_secret(secrets.token_bytes(KEY_BYTES)),
        )

    def seal_key(self) -> str:
        """Return the key that encrypts the secrets of jobs; generate it if its file is missing.

        Raises SecretFileError if the file has other content.
        """
        path = self.seal_key_file()
        if path.exists() and not is_key(path.read_text(errors="replace").strip()):
            raise SecretFileError(
                f"{path} is empty or damaged. Restore it from a backup; or delete it, and jobs that"
                " were stored with secrets will fail."
            )
        return self._stored_secret(path.name, None, lambda: new_key(secrets.token_bytes))

    def seal_key_file(self) -> Path:
        return self.data_dir / "seal-key"

    def receivers(self) -> Allowed:
        """Return the private hosts and networks that webhooks may be sent to."""
        return Allowed.read(self.webhook_allow)

    def _stored_secret(
        self, name: str, configured: SecretStr | None, make: Callable[[], str]
    ) -> str:
        """Return the configured secret, else the one stored in the data directory as `name`."""
        if configured is not None:
            return configured.get_secret_value()
        return stored_secret(self.data_dir / name, make)


def worker_environment(overrides: dict[str, str]) -> dict[str, str]:
    """Return the environment of a worker process: this one without the proxy's secrets, updated.

    If `overrides` has one of the two variables of a secret, the other one is removed.
    """
    removed = {*PROXY_SECRETS}
    for pair in WORKER_SECRETS:
        if any(name in overrides for name in pair):
            removed.update(pair)
    inherited = {name: value for name, value in os.environ.items() if name not in removed}
    return inherited | overrides


def unknown_settings(prefix: str, known: Iterable[str]) -> dict[str, str]:
    """Return the variables with this prefix that are not settings; see `unknown_variables`."""
    return unknown_variables(os.environ, prefix, known)


def was_started_by_make() -> bool:
    """Return True if the user's command is `make up`, which sets this variable."""
    return os.environ.get("VLLM_SERVERLESS_COMMAND") == "make up"
