"""The shapes of what goes in and comes out. An object of ours is closed; what is the engine's is open."""

from proxy.api.jobs.envelope import MAX_EXECUTION, MAX_TTL, MIN_EXECUTION, MIN_TTL, WEBHOOK_CHARACTERS
from proxy.api.openai.dialects import ANTHROPIC_TYPES
from proxy.api.openapi.node import Node, record, schema, whole
from proxy.jobs.lifecycle import Status

TEXT: Node = {"type": "string"}
COUNT: Node = {"type": "integer", "minimum": 0}
ANYTHING: Node = {}
OBJECT: Node = {"type": "object"}

_POLICY: Node = {
    "type": ["object", "null"],
    "properties": {
        "executionTimeout": whole(MIN_EXECUTION, MAX_EXECUTION, description="Milliseconds that one run may take.")
        | {"type": ["integer", "null"]},
        "ttl": whole(MIN_TTL, MAX_TTL, description="Milliseconds from now until the job's life ends.")
        | {"type": ["integer", "null"]},
        "lowPriority": {"type": ["boolean", "null"], "description": "Taken after all others."},
    },
}
_ORDER: Node = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {
            "type": ["object", "array", "string", "number", "boolean"],
            "description": "What the job is to work on: any JSON but null.",
        },
        "webhook": {
            "type": ["string", "null"],
            "format": "uri",
            "maxLength": WEBHOOK_CHARACTERS,
            "description": "Is told of the job's end.",
        },
        "policy": _POLICY,
        "s3Config": {"type": ["object", "null"], "description": "For a stock worker only; kept sealed, never shown."},
    },
    "examples": [{"input": {"prompt": "Hello", "sampling_params": {"max_tokens": 3}}}],
}
_STATUS: Node = {"type": "string", "enum": [*Status]}
_WORKERS = ("idle", "initializing", "ready", "running", "throttled", "unhealthy")
_JOBS = ("completed", "failed", "inProgress", "inQueue", "retried")
_SERVER_WORKERS = ("ready", "running", "initializing")

SCHEMAS: Node = {
    "Order": _ORDER,
    "Status": _STATUS,
    "JobBrief": record({"id": TEXT, "status": schema("Status")}),
    "Job": record(
        {"id": TEXT, "retries": COUNT, "status": schema("Status")},
        {
            "delayTime": COUNT | {"description": "Milliseconds in the queue."},
            "executionTime": COUNT | {"description": "Milliseconds of the last run."},
            "error": TEXT,
            "output": ANYTHING,
            "reason": TEXT | {"description": "Why it waits."},
            "workerId": TEXT,
        },
    ),
    "Stream": record({"status": schema("Status"), "stream": {"type": "array", "items": schema("Element")}}),
    "Element": {"type": "object", "required": ["output"], "properties": {"output": ANYTHING, "metrics": ANYTHING}},
    "Purged": record({"removed": COUNT, "status": {"const": "completed"}}),
    "EndpointHealth": record(
        {
            "jobs": record(dict.fromkeys(_JOBS, COUNT)),
            "workers": record(dict.fromkeys(_WORKERS, COUNT)),
            "durable": {"type": "boolean"},
        }
    ),
    "Requests": record(
        {
            "requests": {"type": "array", "items": schema("RequestRow")},
            "next": {"type": ["string", "null"], "description": "`before` of the next page, an opaque text."},
        }
    ),
    "RequestRow": record(
        {
            "id": TEXT,
            "status": schema("Status"),
            "createdAt": COUNT,
            "delayTime": {"type": ["integer", "null"], "minimum": 0},
            "executionTime": {"type": ["integer", "null"], "minimum": 0},
            "retries": COUNT,
            "workerId": {"type": ["string", "null"]},
        }
    ),
    "QueueError": record({"error": TEXT}),
    "OpenAiError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type"],
                "properties": {
                    "message": TEXT,
                    "type": TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "integer", "null"], "description": "vLLM's own are numbers."},
                },
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {
                    "type": TEXT | {"examples": sorted(set(ANTHROPIC_TYPES.values()))},
                    "message": TEXT,
                },
            },
        },
    },
    "Model": {"type": "object", "required": ["id"], "properties": {"id": TEXT, "object": {"const": "model"}}},
    "ModelList": record({"object": {"const": "list"}, "data": {"type": "array", "items": schema("Model")}}),
    "Server": record(dict.fromkeys(("name", "version", "openai", "ready"), TEXT)),
    "Alive": record({"status": {"const": "ok"}}),
    "Ready": record({"status": TEXT}),
    "ServerHealth": record(
        {
            "status": {"const": "ok"},
            "endpoints": {
                "type": "object",
                "additionalProperties": record(
                    {
                        "jobs": record(dict.fromkeys(("inQueue", "inProgress"), COUNT)),
                        "workers": record(dict.fromkeys(_SERVER_WORKERS, COUNT)),
                    }
                ),
            },
        }
    ),
}
