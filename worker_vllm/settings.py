"""Every `WORKER_*` variable: name, default and meaning.

This is the only file of the worker that reads or changes the environment. Variables of the
worker-vllm image with the meaning of one of ours are aliases here; those that stand for flags of
vLLM are read in `engine/flags`.
"""

import json
import os
import re
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
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from proxy.wire.frames import HEARTBEAT_SECONDS, ID_PATTERN
from proxy.wire.misspelling import unknown_variables
from proxy.wire.secret_file import UnsendableSecretError, check_secret, read_secret
from worker_vllm.ending import EX_CONFIG, EX_USAGE

EngineKind = Literal["vllm", "scripted", "upstream"]
LogLevel = Literal["debug", "info", "warning", "error"]
OutputFormat = Literal["seed", "worker-vllm"]
CpuPinning = Literal["auto", "off"]
# WORKER_MODEL=demo selects the small model that is part of the package.
DEMO = "demo"
NO_PROXY_MESSAGE = (
    "WORKER_CONNECT (--connect) is not set. Set it to the base URL of the proxy, such as"
    " http://127.0.0.1:8000"
)
# The ends of URLs that clients use; a worker needs what precedes them.
_CLIENT_PATH = re.compile(r"(((/v2/[^/]+)?/openai)?/v1|/v2(/[^/]+/worker)?)/?$")
# Settings that only a variable can set: they belong to vLLM and to Runpod's platform.
NO_FLAGS = frozenset({"vllm_api_key", "runpod_webhook_get_job", "runpod_realtime_port"})


class SettingsError(ValueError):
    """A setting is invalid. The text is one line that names the variable and the remedy.

    `status` is the exit status of the worker.
    """

    def __init__(self, message: str, status: int = EX_USAGE) -> None:
        super().__init__(message)
        self.status = status


def _secret_in(path: Any) -> Any:
    return SecretStr(read_secret(Path(path))) if isinstance(path, str | Path) else path


def _worker_id() -> str:
    return f"w-{secrets.token_hex(4)}"


class Settings(BaseSettings):
    """The configuration of a worker, from the environment."""

    model_config = SettingsConfigDict(
        env_prefix="WORKER_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    connect: str = Field(
        default="", description="base URL of the proxy, such as http://127.0.0.1:8000"
    )
    endpoint: str = Field(
        default="default",
        pattern=f"^{ID_PATTERN}$",
        description="name of the endpoint that this worker serves",
    )
    token: SecretStr = Field(
        default=SecretStr(""), description="worker token (`vllm-serverless token` prints it)"
    )
    token_file: Annotated[SecretStr | None, BeforeValidator(_secret_in)] = Field(
        default=None, description="file with the worker token, readable by its owner only"
    )
    id: str = Field(
        default_factory=_worker_id,
        pattern=f"^{ID_PATTERN}$",
        description="unique name of this worker",
    )

    engine: EngineKind = Field(
        default="vllm", description="vllm, scripted (for tests), or upstream (an OpenAI server)"
    )
    model: str = Field(
        default="",
        validation_alias=AliasChoices("WORKER_MODEL", "MODEL_NAME"),
        description="folder or hub id of the model, or `demo`",
    )
    served_model_name: str = Field(
        default="",
        validation_alias=AliasChoices(
            "WORKER_SERVED_MODEL_NAME", "OPENAI_SERVED_MODEL_NAME_OVERRIDE"
        ),
        description="model names that clients use, separated by commas",
    )
    baked_model: Path = Field(
        default=Path("/local_model_args.json"),
        description="file that describes a container image's model; WORKER_MODEL overrides it",
    )
    base_path: Path = Field(
        default=Path("/runpod-volume"),
        validation_alias="BASE_PATH",
        description="models are downloaded into huggingface-cache/hub here, if the folder exists",
    )
    upstream: str = Field(
        default="", description="base URL of an OpenAI-compatible server; implies engine=upstream"
    )
    upstream_key: SecretStr = Field(
        default=SecretStr(""), description="API key for the upstream server"
    )
    upstream_key_file: Annotated[SecretStr | None, BeforeValidator(_secret_in)] = Field(
        default=None,
        description="file with the API key for the upstream server, readable by its owner only",
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        validation_alias=AliasChoices("WORKER_MAX_CONCURRENCY", "MAX_CONCURRENCY"),
        description="maximum concurrent jobs (default: the concurrency of the engine)",
    )

    output_format: OutputFormat = Field(
        default="seed",
        validation_alias=AliasChoices("WORKER_OUTPUT_FORMAT", "OUTPUT_FORMAT"),
        description="shape of native outputs: seed (Runpod guide) or worker-vllm (that image)",
    )

    cpu_pinning: CpuPinning = Field(
        default="auto",
        description="auto: vLLM uses one CPU if there are at most two and no GPU; off: all of them",
    )

    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="loopback port of /metrics; 0 selects a free port"
    )
    drain_seconds: float = Field(
        default=30,
        ge=0,
        le=86400,
        description="seconds that running jobs may take to finish after SIGTERM",
    )
    progress_seconds: float = Field(
        default=120,
        ge=1,
        le=86400,
        description="seconds without progress before vLLM counts as hung; not for an upstream",
    )
    orphan_seconds: float | None = Field(
        default=None,
        ge=1,
        description="seconds without a proxy before the worker exits (default: no limit)",
    )
    heartbeat_seconds: float = Field(
        default=HEARTBEAT_SECONDS,
        gt=0,
        le=10,
        description=(
            "seconds between heartbeats, which renew the lease, and at most between dial attempts"
        ),
    )
    log_level: LogLevel = Field(default="info", description="debug, info, warning or error")

    vllm_api_key: SecretStr = Field(
        default=SecretStr(""), validation_alias="VLLM_API_KEY", description="API key of vLLM"
    )

    runpod_webhook_get_job: str = Field(
        default="",
        validation_alias="RUNPOD_WEBHOOK_GET_JOB",
        description="set by Runpod: the Runpod SDK takes the jobs",
    )
    runpod_realtime_port: int | None = Field(
        default=None,
        validation_alias="RUNPOD_REALTIME_PORT",
        description="set by Runpod: the Runpod SDK listens on this port",
    )

    @field_validator("log_level", "engine", "output_format", "cpu_pinning", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("token", "upstream_key", "vllm_api_key")
    @classmethod
    def _sendable(cls, value: SecretStr) -> SecretStr:
        check_secret(value.get_secret_value())
        return value

    @field_validator("connect", "upstream")
    @classmethod
    def _http_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("must be a URL such as http://127.0.0.1:8000")
        return value.rstrip("/")

    @field_validator("connect")
    @classmethod
    def _base_url(cls, value: str) -> str:
        if found := _CLIENT_PATH.search(urlsplit(value).path):
            raise ValueError(f"leave out {found[0]} at the end of the URL")
        return value

    @model_validator(mode="after")
    def _is_enough(self) -> Self:
        for name in ("token", "upstream_key"):
            if getattr(self, f"{name}_file") is not None and getattr(self, name).get_secret_value():
                variable = f"WORKER_{name.upper()}"
                raise ValueError(f"{variable} and {variable}_FILE are both set. Unset one of them")
        if self.engine == "upstream" and not self.upstream:
            raise ValueError(
                "WORKER_UPSTREAM (--upstream) is not set. Set it to the URL of an OpenAI server, "
                "which WORKER_ENGINE=upstream requires"
            )
        return self

    @property
    def engine_kind(self) -> EngineKind:
        """The engine to run. An upstream URL implies the engine `upstream`."""
        return "upstream" if self.upstream else self.engine

    @property
    def worker_token(self) -> str:
        """The worker token, from `WORKER_TOKEN_FILE` or `WORKER_TOKEN`."""
        return (self.token_file or self.token).get_secret_value()

    @property
    def upstream_api_key(self) -> str:
        """The upstream server's key, from `WORKER_UPSTREAM_KEY_FILE` or `WORKER_UPSTREAM_KEY`."""
        return (self.upstream_key_file or self.upstream_key).get_secret_value()

    @property
    def worker_url(self) -> str:
        """The WebSocket URL to dial. Raises `SettingsError` if `WORKER_CONNECT` is not set."""
        if not self.connect:
            raise SettingsError(NO_PROXY_MESSAGE)
        parts = urlsplit(self.connect)
        scheme = "wss" if parts.scheme == "https" else "ws"
        return urlunsplit((scheme, parts.netloc, f"{parts.path}/v2/{self.endpoint}/worker", "", ""))


def read_settings() -> Settings:
    """Return the settings of this process. Raises `SettingsError` if one is invalid."""
    try:
        settings = Settings()
        return Settings() if _take_baked_model(settings.baked_model) else settings
    except ValidationError as error:
        raise _settings_error(error) from None


def _settings_error(error: ValidationError) -> SettingsError:
    first = error.errors(include_url=False, include_input=False)[0]
    cause = first.get("ctx", {}).get("error")
    status = EX_CONFIG if isinstance(cause, UnsendableSecretError) else EX_USAGE
    return SettingsError(_line(first), status)


def _line(first: ErrorDetails) -> str:
    text = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return text
    location = str(first["loc"][0])
    name = next(name for name in Settings.model_fields if location in (name, *variables_of(name)))
    # The location is the first name of the setting, also if another one is set.
    choices = variables_of(name)
    variable = next((one for one in choices if os.environ.get(one)), choices[0])
    meaning = Settings.model_fields[name].description
    return f"{variable} is wrong: {text} ({meaning}{_flag_text(name)})"


def variables_of(name: str) -> tuple[str, ...]:
    """Return the variables of a setting in the order of their precedence."""
    alias = Settings.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(str(choice) for choice in alias.choices)
    return (alias,) if isinstance(alias, str) else (f"WORKER_{name.upper()}",)


def _flag_text(name: str) -> str:
    """Return the flag of `vllm-serverless worker` that sets a setting, or the file of a secret."""
    if name in NO_FLAGS:
        return ""
    is_secret = Settings.model_fields[name].annotation is SecretStr
    flag = f"{name}_file" if is_secret else name
    return f"; flag --{flag.replace('_', '-')}"


def _take_baked_model(path: Path) -> bool:
    """Apply the description of an image's baked model to the environment.

    It overrides MODEL_NAME and disables access to the hub. Returns False, and changes nothing, if
    WORKER_MODEL is set or the file does not exist.
    """
    if os.environ.get("WORKER_MODEL") or not path.is_file():
        return False
    try:
        baked = {
            str(name): str(value) for name, value in json.loads(path.read_text()).items() if value
        }
    except (OSError, ValueError, AttributeError) as error:
        raise SettingsError(
            f"WORKER_BAKED_MODEL is wrong: {path} does not contain a JSON object ({error})"
        ) from None
    os.environ.update({**baked, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
    return True


def unknown_settings() -> dict[str, str]:
    """Return the `WORKER_*` variables that are not settings, each with the similar one or ""."""
    known = [variable for name in Settings.model_fields for variable in variables_of(name)]
    return unknown_variables(os.environ, "WORKER_", known)


def read_environment() -> dict[str, str]:
    """Return all variables of this process, including those that are not settings."""
    return dict(os.environ)


def set_default_environment(defaults: dict[str, str]) -> None:
    """Set variables that an engine reads, unless the user has set them."""
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
