"""A web page may call only when its origin was named."""

from harness.proxy.server import CHAT, serving

PAGE = "https://chat.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


async def test_no_page_may_call_by_default() -> None:
    async with serving() as proxy, proxy.http.options(CHAT, headers=PREFLIGHT) as response:
        assert response.status == 403
        assert "access-control-allow-origin" not in response.headers


async def test_a_named_page_may_and_sees_errors_too() -> None:
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


async def test_another_page_may_not() -> None:
    async with serving(cors_origin=[PAGE]) as proxy:
        headers = PREFLIGHT | {"origin": "https://evil.example"}
        async with proxy.http.options(CHAT, headers=headers) as response:
            assert response.status == 403
            assert "access-control-allow-origin" not in response.headers
