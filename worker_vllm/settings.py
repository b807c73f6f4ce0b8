"""Every `WORKER_*` variable: name, default and meaning. The only file of the worker that touches the environment.

Names of the worker-vllm image that mean the same as one of ours are second names here. Those that stand for flags of
vLLM are read in `engine/flags`.
"""

import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from proxy.wire.secret_file import read_secret

EngineKind = Literal["vllm", "scripted", "upstream"]
LogLevel = Literal["debug", "info", "warning", "error"]
OutputFormat = Literal["seed", "worker-vllm"]
DEMO = "demo"  # WORKER_MODEL=demo: the small model that is part of the package


NO_PROXY = (
    "WORKER_CONNECT is not set: give the base URL of the proxy, such as http://127.0.0.1:8000"
)


class SettingsError(ValueError):
    """A setting is wrong. Its text is one line that names the variable and the mend."""


def _secret_in(path: Any) -> Any:
    return SecretStr(read_secret(Path(path))) if isinstance(path, str | Path) else path


def _worker_id() -> str:
    return f"w-{secrets.token_hex(4)}"


class Settings(BaseSettings):
    """What a worker needs to know."""

    model_config = SettingsConfigDict(
        env_prefix="WORKER_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    connect: str = Field(
        default="", description="base URL of the proxy, such as http://127.0.0.1:8000"
    )
    endpoint: str = Field(
        default="default", pattern=r"^[A-Za-z0-9_-]{1,80}$", description="the endpoint to work for"
    )
    token: SecretStr = Field(
        default=SecretStr(""), description="the worker token (`vllm-serverless token` prints it)"
    )
    token_file: Annotated[SecretStr | None, BeforeValidator(_secret_in)] = Field(
        default=None, description="a file with the worker token; only its owner may read it"
    )
    id: str = Field(
        default_factory=_worker_id,
        pattern=r"^[A-Za-z0-9_-]{1,80}$",
        description="this worker's name",
    )

    engine: EngineKind = Field(
        default="vllm", description="vllm, scripted (for tests), or upstream (an OpenAI server)"
    )
    model: str = Field(
        default="",
        validation_alias=AliasChoices("WORKER_MODEL", "MODEL_NAME"),
        description="a model's folder, its hub id, or `demo`",
    )
    served_model_name: str = Field(
        default="",
        validation_alias=AliasChoices(
            "WORKER_SERVED_MODEL_NAME", "OPENAI_SERVED_MODEL_NAME_OVERRIDE"
        ),
        description="the name that clients give as `model`; several with commas between them",
    )
    baked_model: Path = Field(
        default=Path("/local_model_args.json"),
        description="file that describes the model of a container image; WORKER_MODEL alone wins over it",
    )
    base_path: Path = Field(
        default=Path("/runpod-volume"),
        validation_alias="BASE_PATH",
        description="where this folder exists, models are downloaded into its huggingface-cache/hub",
    )
    upstream: str = Field(
        default="", description="base URL of an OpenAI-compatible server; implies engine=upstream"
    )
    upstream_key: SecretStr = Field(
        default=SecretStr(""), description="API key for the upstream server"
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        validation_alias=AliasChoices("WORKER_MAX_CONCURRENCY", "MAX_CONCURRENCY"),
        description="jobs held at once; without it, as many as the engine runs at once",
    )

    output_format: OutputFormat = Field(
        default="seed",
        validation_alias=AliasChoices("WORKER_OUTPUT_FORMAT", "OUTPUT_FORMAT"),
        description="shape of native outputs: seed (the Runpod guide's), or worker-vllm (that image's)",
    )

    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="loopback port of /metrics; 0 takes a free one"
    )
    drain_seconds: float = Field(
        default=30, ge=0, le=86400, description="how long running jobs may go on after SIGTERM"
    )
    progress_seconds: float = Field(
        default=120,
        ge=1,
        le=86400,
        description="vLLM hangs after this long without progress; not for an upstream",
    )
    orphan_seconds: float | None = Field(
        default=None, ge=1, description="exit when the proxy was out of reach this long"
    )
    heartbeat_seconds: float = Field(
        default=5, gt=0, le=10, description="how often the lease is renewed, and a proxy dialled"
    )
    log_level: LogLevel = Field(default="info", description="debug, info, warning or error")

    vllm_api_key: SecretStr = Field(
        default=SecretStr(""), validation_alias="VLLM_API_KEY", description="vLLM's key"
    )

    runpod_webhook_get_job: str = Field(
        default="",
        validation_alias="RUNPOD_WEBHOOK_GET_JOB",
        description="set by Runpod: the stock SDK takes the jobs",
    )
    runpod_realtime_port: int | None = Field(
        default=None,
        validation_alias="RUNPOD_REALTIME_PORT",
        description="set by Runpod: the stock SDK listens here",
    )

    @field_validator("log_level", "engine", "output_format", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("connect", "upstream")
    @classmethod
    def _http_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("must be a URL such as http://127.0.0.1:8000")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _is_enough(self) -> Self:
        if self.token_file is not None and self.token.get_secret_value():
            raise ValueError("WORKER_TOKEN and WORKER_TOKEN_FILE are both set: unset one of them")
        if self.engine == "upstream" and not self.upstream:
            raise ValueError(
                "WORKER_UPSTREAM is not set: WORKER_ENGINE=upstream needs the URL of an OpenAI server"
            )
        return self

    @property
    def engine_kind(self) -> EngineKind:
        """The engine to run: an upstream URL decides for itself."""
        return "upstream" if self.upstream else self.engine

    @property
    def worker_token(self) -> str:
        """The worker token, from either source."""
        return (self.token_file or self.token).get_secret_value()

    @property
    def worker_url(self) -> str:
        """The WebSocket address to dial; `SettingsError` if nobody said where the proxy is."""
        if not self.connect:
            raise SettingsError(NO_PROXY)
        parts = urlsplit(self.connect)
        scheme = "wss" if parts.scheme == "https" else "ws"
        return urlunsplit((scheme, parts.netloc, f"{parts.path}/v2/{self.endpoint}/worker", "", ""))


def read_settings() -> Settings:
    """The settings of this process; `SettingsError` with one clear line if one is wrong."""
    try:
        settings = Settings()
        return Settings() if _take_baked_model(settings.baked_model) else settings
    except ValidationError as error:
        raise SettingsError(_line(error)) from None


def _line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    text = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return text
    name = str(first["loc"][0])
    field = Settings.model_fields.get(name)
    variable = name if field is None else f"WORKER_{name.upper()}"
    meaning = f" ({field.description})" if field is not None else ""
    return f"{variable} is wrong: {text}{meaning}"


def _take_baked_model(path: Path) -> bool:
    """Let the image's own model win over MODEL_NAME, and ask no hub for what is there. False: nothing changed."""
    if os.environ.get("WORKER_MODEL") or not path.is_file():
        return False
    try:
        baked = {
            str(name): str(value) for name, value in json.loads(path.read_text()).items() if value
        }
    except (OSError, ValueError, AttributeError) as error:
        raise SettingsError(
            f"WORKER_BAKED_MODEL is wrong: {path} holds no JSON object ({error})"
        ) from None
    os.environ.update({**baked, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
    return True


def read_environment() -> dict[str, str]:
    """All variables of this process, for names that belong to others."""
    return dict(os.environ)


def set_default_environment(defaults: dict[str, str]) -> None:
    """Give variables that an engine reads a value, where the user has not."""
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
