"""Hooks of schemathesis, loaded in its process, which make requests refer to existing things.

Without them, almost all requests would be rejected for their endpoint or model, and webhooks would
be sent to foreign hosts. Where a hook would change the very part under test, some requests are left
as generated.
"""

import re
from typing import Any

import schemathesis

ENDPOINT = re.compile(r"[A-Za-z0-9_-]{1,80}")
# The minimum in milliseconds.
HELD = "1000"
# Webhooks are not sent to this address.
PRIVATE = "http://127.0.0.1/"
MESSAGES = [{"role": "user", "content": "hello"}]


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Adjust a request before it is sent."""
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
