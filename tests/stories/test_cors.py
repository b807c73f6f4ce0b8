"""CORS: only web pages of configured origins may call the API."""

from harness.proxy.server import CHAT, serving

PAGE = "https://chat.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


async def test_cross_origin_requests_are_rejected_by_default() -> None:
    async with serving() as proxy, proxy.http.options(CHAT, headers=PREFLIGHT) as response:
        assert response.status == 403
        assert "access-control-allow-origin" not in response.headers


async def test_a_configured_origin_is_allowed_and_can_read_errors() -> None:
    async with serving(cors_origin=[PAGE]) as proxy:
        async with proxy.http.options(CHAT, headers=PREFLIGHT) as response:
            assert response.status == 200
            assert response.headers["access-control-allow-origin"] == PAGE
            assert response.headers["access-control-max-age"] == "600"
            assert "x-stainless-os" in response.headers["access-control-allow-headers"]
        async with proxy.http.post(
            CHAT, data=b"{", headers={"origin": PAGE, "content-type": "application/json"}
        ) as response:
            assert response.status == 400
            assert response.headers["access-control-allow-origin"] == PAGE
            assert "x-request-id" in response.headers["access-control-expose-headers"]
            assert "x-job-id" in response.headers["access-control-expose-headers"]


async def test_a_page_of_a_configured_origin_may_call_a_private_network() -> None:
    """Chrome asks for it before a public page calls an address of a private network."""
    asked = PREFLIGHT | {"access-control-request-private-network": "true"}
    for settings in ({}, {"api_key": ["k=client-secret"]}):
        async with serving(cors_origin=[PAGE], **settings) as proxy:
            async with proxy.http.options(CHAT, headers=asked) as response:
                assert response.status == 200
                assert response.headers["access-control-allow-origin"] == PAGE
                assert response.headers["access-control-allow-private-network"] == "true"
            async with proxy.http.options(CHAT, headers=PREFLIGHT) as response:
                assert "access-control-allow-private-network" not in response.headers
            foreign = asked | {"origin": "https://evil.example"}
            async with proxy.http.options(CHAT, headers=foreign) as response:
                assert response.status in {400, 403}
                assert "access-control-allow-origin" not in response.headers


async def test_an_origin_that_is_not_configured_is_rejected() -> None:
    async with serving(cors_origin=[PAGE]) as proxy:
        headers = PREFLIGHT | {"origin": "https://evil.example"}
        async with proxy.http.options(CHAT, headers=headers) as response:
            assert response.status == 403
            assert "access-control-allow-origin" not in response.headers
