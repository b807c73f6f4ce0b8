"""The schemas of the OpenAPI document.

Objects of the proxy are closed (no additional properties); objects of the engine are open.
"""

from proxy.api.openai.dialects import ANTHROPIC_TYPES
from proxy.api.openapi.components import (
    ANYTHING,
    COUNT,
    CURSOR_PATTERN,
    TEXT,
    Node,
    integer,
    record,
    schema,
)
from proxy.api.queue.request import (
    MAX_EXECUTION_TIMEOUT_MS,
    MAX_TTL_MS,
    MIN_EXECUTION_TIMEOUT_MS,
    MIN_TTL_MS,
    WEBHOOK_URL_MAX_CHARACTERS,
)
from proxy.jobs.lifecycle import Status

_POLICY: Node = {
    "type": ["object", "null"],
    "properties": {
        "executionTimeout": integer(
            MIN_EXECUTION_TIMEOUT_MS,
            MAX_EXECUTION_TIMEOUT_MS,
            description="Maximum milliseconds of one run.",
        )
        | {"type": ["integer", "null"]},
        "ttl": integer(
            MIN_TTL_MS, MAX_TTL_MS, description="Time to live of the job, in milliseconds."
        )
        | {"type": ["integer", "null"]},
        "lowPriority": {
            "type": ["boolean", "null"],
            "description": "Start after all jobs of normal priority.",
        },
    },
}
_ORDER: Node = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {
            "type": ["object", "array", "string", "number", "boolean"],
            "description": "The input of the job: any JSON value except null.",
        },
        "webhook": {
            "type": ["string", "null"],
            "format": "uri",
            "maxLength": WEBHOOK_URL_MAX_CHARACTERS,
            "description": "URL that receives a POST request when the job has ended.",
        },
        "policy": _POLICY,
        "s3Config": {
            "type": ["object", "null"],
            "description": "Passed to Runpod workers only; stored encrypted, never returned.",
        },
    },
    "examples": [{"input": {"prompt": "Hello", "sampling_params": {"max_tokens": 3}}}],
}
_STATUS: Node = {"type": "string", "enum": [*Status]}
_WORKERS = ("idle", "initializing", "ready", "running", "throttled", "unhealthy")
_JOBS = ("completed", "failed", "inProgress", "inQueue", "retried")

SCHEMAS: Node = {
    "JobRequest": _ORDER,
    "Status": _STATUS,
    "JobBrief": record({"id": TEXT, "status": schema("Status")}),
    "Job": record(
        {"id": TEXT, "retries": COUNT, "status": schema("Status")},
        {
            "delayTime": COUNT | {"description": "Milliseconds in the queue."},
            "executionTime": COUNT | {"description": "Milliseconds of the last run."},
            "error": TEXT,
            "output": ANYTHING,
            "reason": TEXT | {"description": "Reason why the job is queued."},
            "workerId": TEXT,
        },
    ),
    "Stream": record(
        {"status": schema("Status"), "stream": {"type": "array", "items": schema("Element")}},
        {"next": {"type": "string", "pattern": CURSOR_PATTERN}},
    ),
    "Element": {
        "type": "object",
        "required": ["output"],
        "properties": {"output": ANYTHING, "metrics": ANYTHING},
    },
    "Purged": record({"removed": COUNT, "status": {"const": "completed"}}),
    "EndpointHealth": record(
        {
            "jobs": record(dict.fromkeys(_JOBS, COUNT)),
            "workers": record(dict.fromkeys(_WORKERS, COUNT)),
            "durable": {"type": "boolean"},
        },
        {
            "unhealthy": {
                "type": "array",
                "items": TEXT,
                "description": "Each unhealthy worker, with the reason.",
            }
        },
    ),
    "Requests": record(
        {
            "requests": {"type": "array", "items": schema("RequestRow")},
            "next": {
                "type": ["string", "null"],
                "description": "The value of `before` for the next page; opaque.",
            },
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
                    "code": {
                        "type": ["string", "integer", "null"],
                        "description": "Errors of vLLM have numbers.",
                    },
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
    "Model": {
        "type": "object",
        "required": ["id"],
        "properties": {"id": TEXT, "object": {"const": "model"}},
    },
    "ModelList": record(
        {"object": {"const": "list"}, "data": {"type": "array", "items": schema("Model")}}
    ),
}
