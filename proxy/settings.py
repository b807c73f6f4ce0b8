"""Every setting of the proxy: `PROXY_*` variables; a command line flag overrides its twin."""

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from proxy.access.encryption import new_key
from proxy.access.keys import Kind, StoredKey, parted, stored_key
from proxy.access.rate_limits import LIMITS, REQUESTS_PER_WORKER, Limit
from proxy.access.startup_check import refusal
from proxy.api.openai.relay import HeartbeatIntervals
from proxy.channel.runpod.tracking import RunpodTimeouts
from proxy.edge.connections import Pace
from proxy.edge.head import Hosts, is_host
from proxy.edge.origins import ANY_ORIGIN, read_origin
from proxy.jobs.model import EndpointId, Millis
from proxy.service.endpoints import Endpoint
from proxy.service.stuck import GRACE_SECONDS
from proxy.webhooks.signature import KEY_BYTES, format_secret, read_secret
from proxy.webhooks.url_policy import Allowed
from proxy.wire.frames import LEASE_SECONDS
from proxy.wire.secret_file import read_secret as read_token
from proxy.wire.secret_file import read_secrets as read_keys

SECRETS = (
    *("PROXY_API_KEY", "PROXY_API_KEY_FILE", "PROXY_WORKER_TOKEN", "PROXY_WORKER_TOKEN_FILE"),
    "PROXY_WEBHOOK_SECRET",
)
WORKER_TOKENS = ("WORKER_TOKEN", "WORKER_TOKEN_FILE")
KEPT_FOR_WORKERS = "worker-token"  # its file in the data directory
YEAR = 31_536_000  # seconds; milliseconds of it fit every store
MEMORY, SQLITE = "memory:", "sqlite:///"
_LIMIT = re.compile(
    r"(?P<operation>[a-z-]+)=(?P<requests>[0-9]{1,9})(/(?P<concurrent>[0-9]{1,9}))?"
)
_ENDPOINT = re.compile(r"[A-Za-z0-9_-]{1,80}")


def _keys_in(path: Any) -> Any:
    """The keys in a file. A variable that is set and empty is a file that went missing."""
    if not isinstance(path, str | Path):
        return path
    return [SecretStr(key) for key in read_keys(_named(path))]


def _token_in(path: Any) -> Any:
    return SecretStr(read_token(_named(path))) if isinstance(path, str | Path) else path


def _named(path: str | Path) -> Path:
    if not str(path):
        raise ValueError("the path is empty: give the path of a file, or unset it")
    return Path(path)


class Settings(BaseSettings):
    """What the proxy is told from outside. Lists are separated by spaces in the environment."""

    model_config = SettingsConfigDict(
        env_prefix="PROXY_", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    host: str = Field(
        "127.0.0.1", description="Address to listen on. Any other than loopback needs an API key."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_key: Annotated[list[SecretStr], NoDecode] = Field(
        [], description="[OWNER=]KEY that clients send."
    )
    api_key_file: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_keys_in)] = Field(
        (),
        description="File with one [OWNER=]KEY a line that clients send; only its owner may read it.",
    )
    worker_token: SecretStr | None = Field(
        None, description="What workers send; made and kept in the data directory."
    )
    worker_token_file: Annotated[SecretStr | None, BeforeValidator(_token_in)] = Field(
        None, description="File with what workers send; only its owner may read it."
    )
    endpoint: Annotated[list[str], NoDecode] = Field(
        ["default"], description="ID[=MODEL,...] of an endpoint."
    )
    data_dir: Path = Field(
        Path(".data"), description="Where the token and the logs of local workers are kept."
    )
    store: str = Field(
        "",
        description="Where jobs are: sqlite:///PATH, or memory:; else jobs.db in the data directory.",
    )
    cors_origin: Annotated[list[str], NoDecode] = Field(
        [], description="Origin of a web page that may call this, or *."
    )
    webhook_secret: SecretStr | None = Field(
        None, description="Signs webhooks; made and kept in the data directory."
    )
    webhook_allow: Annotated[list[str], NoDecode] = Field(
        [], description="Host or network that webhooks may go to although it is private."
    )
    queue_timeout: float = Field(
        300.0, gt=0, le=YEAR, description="Seconds an OpenAI call waits for a worker before 503."
    )
    execution_timeout: float = Field(600.0, gt=0, le=YEAR, description="Seconds one call may run.")
    max_queued: int = Field(
        10_000, gt=0, description="Waiting jobs of one endpoint; above it the answer is 429."
    )
    limit: Annotated[list[str], NoDecode] = Field(
        [],
        description="OPERATION=REQUESTS[/CONCURRENT] per key in ten seconds and at once; 0 lifts a limit, alone both.",
    )
    limit_per_worker: int = Field(
        REQUESTS_PER_WORKER, ge=0, description="Requests in ten seconds for each running worker."
    )
    allowed_host: Annotated[list[str], NoDecode] = Field(
        [],
        description="Name by which clients call this; without any, every name where a key is needed.",
    )
    max_connections: int | None = Field(
        None,
        gt=0,
        description="Clients connected at once; else as many as there are descriptors for.",
    )
    body_budget: int = Field(
        256 * 1024 * 1024,
        ge=32 * 1024 * 1024,
        description="Bytes of all clients' bodies together; above it 503.",
    )
    head_timeout: float = Field(
        10.0, gt=0, description="Seconds in which a request's head has to be whole."
    )
    body_grace: float = Field(
        10.0, gt=0, description="Seconds in which a body has to bring a KB for each of them."
    )
    body_timeout: float = Field(120.0, gt=0, description="Seconds in which a body has to be whole.")
    drain: float = Field(
        30.0, ge=0, description="Seconds that running calls get to finish at shutdown."
    )
    lease: float = Field(
        LEASE_SECONDS, gt=0, description="Seconds after which a silent worker is lost."
    )
    stop_grace: float = Field(
        GRACE_SECONDS,
        gt=0,
        description="Seconds a run may take to stop; then a worker that was started here is ended.",
    )
    poll_hold: float = Field(
        20.0, gt=0, lt=60, description="Seconds that a stock worker's poll is held."
    )
    ping_lease: float = Field(
        35.0, gt=0, description="Seconds after which a silent stock worker is lost."
    )
    line_gap: float = Field(
        10.0, gt=0, description="Seconds after which a stock worker is lost whose process ended."
    )
    heartbeat_first: float = Field(
        1.0, gt=0, description="Seconds until a waiting stream hears that it is queued."
    )
    heartbeat_queued: float = Field(
        5.0, gt=0, description="Seconds between heartbeats while it is queued."
    )
    heartbeat_silent: float = Field(
        15.0, gt=0, description="Seconds of silence before a heartbeat, once it runs."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error."
    )

    @field_validator("limit")
    @classmethod
    def _known_limits(cls, value: list[str]) -> list[str]:
        for text in value:
            _limit(text)
        return value

    @field_validator("api_key", mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        """A variable that is set and empty is a key that went missing, not the wish for none."""
        return (value.split() or [""]) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.worker_token is not None and self.worker_token_file is not None:
            raise ValueError(
                "PROXY_WORKER_TOKEN and PROXY_WORKER_TOKEN_FILE are both set: unset one of them"
            )
        return self

    @field_validator(
        "endpoint", "cors_origin", "limit", "webhook_allow", "allowed_host", mode="before"
    )
    @classmethod
    def _words(cls, value: Any) -> Any:
        return value.split() if isinstance(value, str) else value

    @field_validator("cors_origin")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        """Return the origins as browsers write them, since CORS compares texts."""
        return [_origin(text) for text in value]

    @field_validator("endpoint")
    @classmethod
    def _endpoint_ids(cls, value: list[str]) -> list[str]:
        for text in value:
            if not _ENDPOINT.fullmatch(text.partition("=")[0]):
                message = f"{text!r}: an endpoint's id is 1 to 80 letters, digits, '-' and '_'"
                raise ValueError(message)
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            read_secret(value.get_secret_value())
        return value

    @field_validator("webhook_allow")
    @classmethod
    def _receivers(cls, value: list[str]) -> list[str]:
        Allowed.read(value)
        return value

    @field_validator("allowed_host")
    @classmethod
    def _host_names(cls, value: list[str]) -> list[str]:
        for text in value:
            if not is_host(text):
                raise ValueError(f"{text!r}: give a name or an address, without a port")
        return value

    @field_validator("store")
    @classmethod
    def _known_store(cls, value: str) -> str:
        is_file = value.startswith(SQLITE) and value != SQLITE
        if value not in ("", MEMORY) and not is_file:
            raise ValueError(f"{value!r}: give {SQLITE}PATH or {MEMORY}")
        return value

    def endpoints(self) -> list[Endpoint]:
        """The configured endpoints."""
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
        """What one key may ask of one endpoint."""
        return LIMITS | dict(_limit(text) for text in self.limit)

    def hosts(self) -> Hosts:
        """The names by which this proxy may be called."""
        return Hosts(
            frozenset(name.lower().encode() for name in self.allowed_host),
            is_open=not self.client_keys(),
        )

    def pace(self) -> Pace:
        """How slow a client may be."""
        return Pace(self.head_timeout, self.body_grace, self.body_timeout)

    def intervals(self) -> HeartbeatIntervals:
        """When a stream's client hears that it is alive."""
        return HeartbeatIntervals(
            self.heartbeat_first, self.heartbeat_queued, self.heartbeat_silent
        )

    def patience(self) -> RunpodTimeouts:
        """How long stock workers are waited for."""
        return RunpodTimeouts(self.poll_hold, self.ping_lease, self.line_gap)

    def client_keys(self) -> list[str]:
        """Return the `[OWNER=]KEY` of all clients, from both sources."""
        return [key.get_secret_value() for key in (*self.api_key, *self.api_key_file)]

    def keys(self, worker_token: str) -> list[StoredKey]:
        """All keys, as digests."""
        clients = [stored_key(key, Kind.CLIENT) for key in self.client_keys()]
        return [*clients, stored_key(f"workers={worker_token}", Kind.WORKER)]

    def store_file(self) -> Path | None:
        """The file in which jobs are kept, or None to keep them in memory."""
        if self.store == MEMORY:
            return None
        return (
            Path(self.store.removeprefix(SQLITE)).expanduser()
            if self.store
            else self.data_dir / "jobs.db"
        )

    def refusal(self) -> str | None:
        """Why the proxy must not start with these settings, or None."""
        path = self.data_dir / KEPT_FOR_WORKERS
        kept = path.read_text().strip() if path.exists() else ""
        given = self._given_token()
        token = (kept or None) if given is None else given.get_secret_value()
        return refusal(self.host, [parted(key) for key in self.client_keys()], token)

    def token(self) -> str:
        """The worker token."""
        return self._kept(KEPT_FOR_WORKERS, self._given_token(), lambda: secrets.token_urlsafe(32))

    def _given_token(self) -> SecretStr | None:
        return self.worker_token if self.worker_token is not None else self.worker_token_file

    def signing_secret(self) -> str:
        """What webhooks are signed with, as their receivers are given it."""
        return self._kept(
            "webhook-secret",
            self.webhook_secret,
            lambda: format_secret(secrets.token_bytes(KEY_BYTES)),
        )

    def seal_key(self) -> str:
        """What the secrets that jobs bring are sealed with, in the store."""
        return self._kept("seal-key", None, lambda: new_key(secrets.token_bytes))

    def receivers(self) -> Allowed:
        """The private receivers that webhooks may go to."""
        return Allowed.read(self.webhook_allow)

    def _kept(self, name: str, given: SecretStr | None, make: Callable[[], str]) -> str:
        """A secret: the given one, else the kept one, else a new one that is kept from now on."""
        if given is not None:
            return given.get_secret_value()
        path = self.data_dir / name
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.data_dir.chmod(0o700)
        try:
            path.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            if kept := path.read_text().strip():
                return kept
        path.write_text(f"{make()}\n")
        return path.read_text().strip()


def _origin(text: str) -> str:
    if text in (ANY_ORIGIN, "null"):
        return text
    origin = read_origin(text.removesuffix("/"))
    if origin is None:
        raise ValueError(
            f"{text!r}: an origin is SCHEME://HOST or SCHEME://HOST:PORT, without a path,"
            f" or {ANY_ORIGIN}"
        )
    return str(origin)


def _limit(text: str) -> tuple[str, Limit]:
    """`OPERATION=REQUESTS[/CONCURRENT]`, read."""
    found = _LIMIT.fullmatch(text)
    if found is None or found["operation"] not in LIMITS:
        known = ", ".join(LIMITS)
        message = (
            f"{text!r}: a limit is OPERATION=REQUESTS or OPERATION=REQUESTS/CONCURRENT, of {known}"
        )
        raise ValueError(message)
    requests = int(found["requests"])
    if found["concurrent"] is not None:
        concurrent = int(found["concurrent"])
    else:  # 0 alone lifts both limits
        concurrent = (LIMITS[found["operation"]].concurrent or 0) if requests else 0
    return found["operation"], Limit(requests or None, concurrent or None)


def worker_environment(overrides: dict[str, str]) -> dict[str, str]:
    """Return the environment for a worker's process: this one's, without the proxy's own secrets, and `overrides`.

    Of the worker token's two variables only the given one stays.
    """
    replaced = WORKER_TOKENS if any(name in overrides for name in WORKER_TOKENS) else ()
    inherited = {
        name: value for name, value in os.environ.items() if name not in (*SECRETS, *replaced)
    }
    return inherited | overrides
