"""The same requests through nginx and HAProxy, which share connections: nobody gets another client's answer."""

import pytest
from harness.network.attack import attack_behind, is_answered, listed
from harness.network.fronts import FRONTS, front
from harness.network.malformed import CASES, TOKEN
from harness.network.recording_cable import tap
from harness.proxy.server import serving


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", FRONTS)
async def test_no_malformed_request_upsets_other_clients(name: str) -> None:
    wrong: dict[str, str] = {}
    async with (
        serving(worker_token=TOKEN, head_timeout=1.0, body_grace=1.0) as proxy,
        tap(proxy.url) as tapped,
        front(name, tapped.url) as url,
    ):
        assert await is_answered(url) == ""
        for case in CASES:
            told = await attack_behind(url, case) or await is_answered(url)
            arrived = tapped.new_faults()
            if told := told or "; ".join([] if case.odd else arrived):
                wrong[case.name] = told
        assert tapped.carried
    assert not wrong, listed(wrong)
