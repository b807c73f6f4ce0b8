"""The assignment of models to endpoints."""

import pytest

from proxy.api.unknown import unknown_model
from proxy.jobs.model import EndpointId
from proxy.jobs.served_model import Model
from proxy.service.endpoints import Endpoint, Endpoints, OtherModelError, listed

FIRST = Endpoint(EndpointId("first"))
SECOND = Endpoint(EndpointId("second"), models=("big",))


@pytest.fixture
def endpoints() -> Endpoints:
    return Endpoints([FIRST, SECOND])


def test_a_long_list_of_names_is_cut() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert (
        listed([str(number) for number in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 others"
    )
    assert listed(["x" * 5_000]) == "x" * 100


def test_an_unknown_model_is_answered_with_all_that_are_served(endpoints: Endpoints) -> None:
    endpoints.announce(FIRST, [Model("small"), Model("adapter", base=False)], others=False)
    error = unknown_model("x" * 5_000, None, endpoints)
    assert str(error).endswith("` is not served by any endpoint. Served: small, adapter, big.")
    assert len(str(error)) < 400


def names(endpoints: Endpoints, endpoint: Endpoint) -> list[str]:
    return [model.id for model in endpoints.models(endpoint)]


def test_configured_models_exist_before_any_worker(endpoints: Endpoints) -> None:
    assert names(endpoints, FIRST) == []
    assert names(endpoints, SECOND) == ["big"]


def test_an_endpoint_without_models_accepts_any_name(endpoints: Endpoints) -> None:
    assert endpoints.serves(FIRST, "anything")
    assert not endpoints.serves(SECOND, "anything")


def test_announced_models_remain_after_the_worker_has_left(endpoints: Endpoints) -> None:
    endpoints.announce(FIRST, [Model("small", b"{}"), Model("adapter", base=False)], others=False)
    assert names(endpoints, FIRST) == ["small", "adapter"]
    assert endpoints.having("adapter") is FIRST
    assert not endpoints.serves(FIRST, "big")


def test_a_flat_path_finds_the_endpoint_by_the_model(endpoints: Endpoints) -> None:
    assert endpoints.having("big") is SECOND
    assert endpoints.having(None) is FIRST
    assert endpoints.having("nobody") is None


def test_a_model_of_two_endpoints_is_served_by_the_first(endpoints: Endpoints) -> None:
    endpoints.announce(FIRST, [Model("big")], others=False)
    assert endpoints.having("big") is FIRST


def test_a_model_other_than_the_configured_one_is_refused(endpoints: Endpoints) -> None:
    with pytest.raises(OtherModelError, match="second serves big, this worker small"):
        endpoints.announce(SECOND, [Model("small")], others=False)


def test_a_model_that_differs_from_the_other_workers_is_refused(endpoints: Endpoints) -> None:
    endpoints.announce(FIRST, [Model("small")], others=False)
    with pytest.raises(OtherModelError):
        endpoints.announce(FIRST, [Model("other")], others=True)
    endpoints.announce(FIRST, [Model("small"), Model("adapter", base=False)], others=True)


def test_restored_models_are_known_until_a_worker_announces_others(endpoints: Endpoints) -> None:
    endpoints.restore(FIRST, [Model("small", b"{}"), Model("adapter", base=False)])
    assert names(endpoints, FIRST) == ["small", "adapter"]
    assert not endpoints.serves(FIRST, "big")
    assert endpoints.having("adapter") is FIRST
    endpoints.announce(FIRST, [Model("other")], others=False)
    assert names(endpoints, FIRST) == ["other"]


def test_restored_models_do_not_replace_configured_ones(endpoints: Endpoints) -> None:
    endpoints.restore(SECOND, [Model("small")])
    assert names(endpoints, SECOND) == ["big"]
    endpoints.restore(SECOND, [Model("big", b"{}"), Model("adapter", base=False)])
    assert names(endpoints, SECOND) == ["big", "adapter"]


def test_only_changes_of_announced_models_are_reported(endpoints: Endpoints) -> None:
    changed: list[EndpointId] = []
    endpoints.on_change = changed.append
    endpoints.restore(FIRST, [Model("small")])
    endpoints.announce(FIRST, [Model("small")], others=False)
    assert changed == []
    for _ in range(2):
        endpoints.announce(FIRST, [Model("small", b"{}")], others=False)
    assert changed == [FIRST.id]
    assert list(endpoints.announced(FIRST.id)) == [Model("small", b"{}")]


def test_a_new_model_is_accepted_after_all_workers_have_left(endpoints: Endpoints) -> None:
    endpoints.announce(FIRST, [Model("small")], others=False)
    endpoints.announce(FIRST, [Model("other")], others=False)
    assert names(endpoints, FIRST) == ["other"]


CHAT = frozenset({"/v1/chat/completions", "/tokenize"})
POOLING = frozenset({"/v1/embeddings", "/tokenize"})


def test_the_routes_of_a_model_are_those_that_its_worker_announced(endpoints: Endpoints) -> None:
    assert endpoints.routes(FIRST, None) == frozenset()
    assert endpoints.routes(SECOND, "big") == frozenset()
    announced = [Model("small", routes=CHAT), Model("adapter", base=False, routes=POOLING)]
    endpoints.announce(FIRST, announced, others=False)
    assert endpoints.routes(FIRST, "small") == CHAT
    assert endpoints.routes(FIRST, None) == CHAT | POOLING
    assert endpoints.routes(FIRST, "nobody") == frozenset()


def test_the_routes_of_two_workers_are_joined_and_unknown_ones_stay_unknown(
    endpoints: Endpoints,
) -> None:
    endpoints.announce(FIRST, [Model("small", routes=CHAT)], others=False)
    endpoints.announce(FIRST, [Model("small", routes=POOLING)], others=True)
    assert endpoints.routes(FIRST, "small") == CHAT | POOLING
    endpoints.announce(FIRST, [Model("small")], others=True)
    endpoints.announce(FIRST, [Model("small", routes=CHAT)], others=True)
    assert endpoints.routes(FIRST, "small") == frozenset()
    endpoints.announce(FIRST, [Model("small", routes=CHAT)], others=False)
    assert endpoints.routes(FIRST, "small") == CHAT


def test_an_endpoint_without_models_is_called_by_its_id(endpoints: Endpoints) -> None:
    assert endpoints.default_model(FIRST) == "first"
    assert endpoints.default_model(SECOND) == "big"


def test_the_only_endpoint_accepts_any_model_until_it_has_one() -> None:
    endpoints = Endpoints([FIRST])
    assert endpoints.having("anything") is FIRST
    endpoints.announce(FIRST, [Model("small")], others=False)
    assert endpoints.having("anything") is None
