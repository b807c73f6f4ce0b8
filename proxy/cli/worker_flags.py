"""The flags of a worker. The command line passes them on as variables, and the worker checks them.

The proxy's package does not import the worker's, so the names, variables and defaults are listed
here; a test compares them with the settings of the worker.
"""

from proxy.cli.flags import SettingFlag

WORKER_FLAGS = (
    SettingFlag(
        "connect", "WORKER_CONNECT", "Base URL of the proxy, such as http://127.0.0.1:8000."
    ),
    SettingFlag("endpoint", "WORKER_ENDPOINT", "Endpoint whose jobs the worker runs.", "default"),
    SettingFlag(
        "model",
        "WORKER_MODEL",
        "Folder or hub id of a model; `demo` is the bundled one.",
    ),
    SettingFlag(
        "served_model_name",
        "WORKER_SERVED_MODEL_NAME",
        "Model names that clients use, separated by commas (default: the model).",
    ),
    SettingFlag(
        "upstream",
        "WORKER_UPSTREAM",
        "URL of an OpenAI-compatible server to use instead of vLLM.",
    ),
    SettingFlag(
        "upstream_key_file",
        "WORKER_UPSTREAM_KEY_FILE",
        "File with the API key of that server; must be readable only by its owner.",
        kind="PATH",
    ),
    SettingFlag(
        "max_concurrency",
        "WORKER_MAX_CONCURRENCY",
        "Concurrent jobs of a worker (default: as many as the engine runs at once).",
        kind="INTEGER",
    ),
    SettingFlag(
        "engine",
        "WORKER_ENGINE",
        "Engine of the worker; --upstream implies `upstream`, and `scripted` is for tests.",
        "vllm",
        "vllm|upstream|scripted",
    ),
    SettingFlag(
        "output_format",
        "WORKER_OUTPUT_FORMAT",
        "Shape of native outputs: seed (Runpod guide) or worker-vllm (that image).",
        "seed",
        "seed|worker-vllm",
    ),
    SettingFlag(
        "metrics_port",
        "WORKER_METRICS_PORT",
        "Loopback port of the engine's /metrics; 0 selects a free one, and further local workers"
        " use the ports after it.",
        kind="INTEGER",
    ),
    SettingFlag(
        "cpu_pinning",
        "WORKER_CPU_PINNING",
        "auto: vLLM uses one CPU if there are at most two and no GPU; off: it uses all of them.",
        "auto",
        "auto|off",
    ),
    SettingFlag("id", "WORKER_ID", "Unique name of the worker (default: a random one)."),
    SettingFlag(
        "drain_seconds",
        "WORKER_DRAIN_SECONDS",
        "Seconds that running jobs may take to finish after SIGTERM.",
        "30",
        "NUMBER",
    ),
    SettingFlag(
        "progress_seconds",
        "WORKER_PROGRESS_SECONDS",
        "Seconds without progress before vLLM counts as hung; not for an upstream.",
        "120",
        "NUMBER",
    ),
    SettingFlag(
        "orphan_seconds",
        "WORKER_ORPHAN_SECONDS",
        "Seconds without a proxy before the worker exits (default: no limit).",
        kind="NUMBER",
    ),
    SettingFlag(
        "heartbeat_seconds",
        "WORKER_HEARTBEAT_SECONDS",
        "Seconds between heartbeats, and at most between two attempts to connect.",
        "5",
        "NUMBER",
    ),
    SettingFlag(
        "baked_model",
        "WORKER_BAKED_MODEL",
        "File that describes the model in a container image.",
        "/local_model_args.json",
        "PATH",
    ),
    SettingFlag(
        "base_path",
        "BASE_PATH",
        "Folder under which models are downloaded, if it exists.",
        "/runpod-volume",
        "PATH",
    ),
    SettingFlag(
        "log_level", "WORKER_LOG_LEVEL", "Level of the log.", "info", "debug|info|warning|error"
    ),
)
# `up` sets the others for each of its workers; the level of the log is one flag of `up`.
LOCAL_WORKER_FLAGS = tuple(
    flag
    for flag in WORKER_FLAGS
    if flag.name not in {"connect", "endpoint", "id", "orphan_seconds", "log_level"}
)
# The variables without a flag in this table: secrets, and the file of the token, whose flag is in
# `credentials`.
SECRET_VARIABLES = ("WORKER_TOKEN", "WORKER_TOKEN_FILE", "WORKER_UPSTREAM_KEY")
WORKER_VARIABLES = [*(flag.variable for flag in WORKER_FLAGS), *SECRET_VARIABLES]
