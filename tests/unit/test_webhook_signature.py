"""Signatures of webhooks, judged by the libraries that receivers use."""

import json
import time
from base64 import b64encode

import openai
import pytest
from harness.data.jobs import submission

from proxy.jobs.lifecycle import Status
from proxy.jobs.model import Job, Millis
from proxy.webhooks.signature import format_secret, message_id, read_secret, sign

KEY = bytes(range(32))
BODY = (
    '{"id": "a-u1", "output": [1.0e5, 12345678901234567890, "\u00fc\U0001f600"],  '
    '"status": "COMPLETED"}'
).encode()


def now() -> Millis:
    return Millis(time.time_ns() // 1_000_000)


def test_the_library_of_the_standard_accepts_a_signature() -> None:
    standardwebhooks = pytest.importorskip(
        "standardwebhooks", reason="pip install standardwebhooks"
    )
    webhook = standardwebhooks.Webhook(format_secret(KEY))
    headers = sign(KEY, "a-u1-0", now(), BODY)
    assert webhook.verify(BODY, headers) == json.loads(BODY)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        webhook.verify(BODY.replace(b"COMPLETED", b"FAILED"), headers)


def test_openais_sdk_accepts_a_signature() -> None:
    client = openai.OpenAI(api_key="none", webhook_secret=format_secret(KEY))
    headers = sign(KEY, "a-u1-0", now(), BODY)
    client.webhooks.verify_signature(BODY, headers)
    for wrong in (
        headers | {"webhook-id": "a-u1-1"},
        headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) - 1)},
        sign(bytes(32), "a-u1-0", now(), BODY),
        sign(KEY, "a-u1-0", Millis(now() - 400_000), BODY),
    ):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.verify_signature(BODY, wrong)


def test_a_signature_is_the_one_of_the_standards_own_example() -> None:
    key = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = sign(
        key, "msg_p5jXN8AQM9LWM0D4loKWxJek", Millis(1_614_265_330_999), b'{"test": 2432232314}'
    )
    assert headers["webhook-timestamp"] == "1614265330"
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("length", [24, 25, 26, 64])
@pytest.mark.parametrize("padding", ["", "="])
def test_a_secret_is_read_with_and_without_padding(length: int, padding: str) -> None:
    text = format_secret(bytes(length))
    assert read_secret(text if padding else text.rstrip("=")) == bytes(length)


@pytest.mark.parametrize("text", [
    "", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!", "whsec_\u00fc", *(
    "whsec_" + b64encode(bytes(length)).decode() for length in (1, 23, 65)
)])  # fmt: skip
def test_an_invalid_secret_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 random bytes"):
        read_secret(text)


def test_an_end_has_an_id_of_its_own() -> None:
    job = Job(submission("a-u1"), sequence=1, status=Status.FAILED, created_at=Millis(0), attempt=3)
    again = Job(
        submission("a-u1"),
        sequence=2,
        status=Status.CANCELLED,
        created_at=Millis(0),
        attempt=3,
        retry_count=1,
    )
    assert message_id(job) != message_id(again)
    assert "." not in message_id(job)
