"""Malformed requests through nginx and HAProxy, which share connections between clients.

No client receives the response of another one.
"""

import pytest
from harness.network.attack import attack_behind, is_answered, listed
from harness.network.fronts import FRONTS, front
from harness.network.malformed import CASES, TOKEN
from harness.network.recording_cable import tap
from harness.proxy.server import serving

pytestmark = pytest.mark.slow


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", FRONTS)
async def test_no_malformed_request_affects_other_clients(name: str) -> None:
    wrong: dict[str, str] = {}
    async with (
        serving(worker_token=TOKEN, head_timeout=1.0, body_grace=1.0) as proxy,
        tap(proxy.url) as tapped,
        front(name, tapped.url) as url,
    ):
        assert await is_answered(url) == ""
        for case in CASES:
            fault = await attack_behind(url, case) or await is_answered(url)
            arrived = tapped.new_faults()
            if not fault and not case.odd:
                fault = "; ".join(arrived)
            if fault:
                wrong[case.name] = fault
        assert tapped.carried
    assert not wrong, listed(wrong)
