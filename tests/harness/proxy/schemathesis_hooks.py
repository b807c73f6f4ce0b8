"""Hooks of schemathesis, read by its own process: they make what it generates meet something here.

Left alone, hardly a request would get past the endpoint or the model, and webhooks would go to machines of others.
Where it is this that would be changed, some requests stay as they were.
"""

import re
from typing import Any

import schemathesis

ENDPOINT = re.compile(r"[A-Za-z0-9_-]{1,80}")
HELD = "1000"  # milliseconds; the least that there is
PRIVATE = "http://127.0.0.1/"  # no webhook goes there
MESSAGES = [{"role": "user", "content": "hello"}]


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """The last word on a request before it leaves."""
    found = case.path_parameters or {}
    endpoint = str(found.get("endpoint", ""))
    if ENDPOINT.fullmatch(endpoint) and not endpoint.startswith("_"):
        found["endpoint"] = "default"
    model = str(found.get("model", ""))
    if len(model) % 2:
        found["model"] = "scripted"
    if case.query and "wait" in case.query:
        case.query["wait"] = HELD
    if isinstance(case.body, dict):
        _meet(case.body)


def _meet(body: dict[str, Any]) -> None:
    if body.get("webhook"):
        body["webhook"] = PRIVATE
    model = body.get("model")
    if isinstance(model, str) and len(model) % 4:
        body["model"] = "scripted"
    if "model" in body and "file" not in body:
        body.setdefault("messages", MESSAGES)
        body.setdefault("prompt", "hello")
