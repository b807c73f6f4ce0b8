"""The detection of the Runpod SDK, and the separation of its flags from those of vLLM."""

import pytest

from worker_vllm.runpod_sdk.flags import Mode, Wish, read
from worker_vllm.settings import Settings

JOB_TAKE_URL = "http://127.0.0.1:1/v2/ep1/job-take/$ID?gpu=x"

WISHES = [
    ({}, (), None),
    ({"RUNPOD_WEBHOOK_GET_JOB": JOB_TAKE_URL}, ("--dtype", "bfloat16"),
     Wish(Mode.QUEUE, (), ("--dtype", "bfloat16"))),
    ({"RUNPOD_WEBHOOK_GET_JOB": JOB_TAKE_URL, "connect": "http://127.0.0.1:8000"}, (), None),
    ({"RUNPOD_WEBHOOK_GET_JOB": JOB_TAKE_URL, "RUNPOD_REALTIME_PORT": "9000"}, (),
     Wish(Mode.CALL, (), ())),
    ({"connect": "http://127.0.0.1:8000"}, ("--test_input", "{}"),
     Wish(Mode.CALL, ("--test_input", "{}"), ())),
    ({}, ("--seed", "1", "--rp_serve_api", "--rp_api_port", "1", "--seed", "2"),
     Wish(Mode.SERVE, ("--rp_serve_api", "--rp_api_port", "1"), ("--seed", "1", "--seed", "2"))),
    ({}, ("--test", "x"), None),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "arguments", "wish"), WISHES)
def test_the_sdk_is_used_if_it_is_requested(
    settings: dict[str, str], arguments: tuple[str, ...], wish: Wish | None
) -> None:
    assert read(Settings.model_validate(settings), arguments) == wish
