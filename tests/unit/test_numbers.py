"""Parsing of numbers in queries, headers and settings, which is stricter than Python's."""

import time

import pytest
from harness.data.jobs import HERE
from pydantic import ValidationError

from proxy.access.limits import LIMITS, Limit, LimitedError, Limits
from proxy.api.http import MAX_INTEGER, read_floor, read_seconds, read_whole
from proxy.settings import Settings

NOT_NUMBERS = (
    *("", " ", "nan", "inf", "Infinity", "-inf", "-1", "+5", " 5", "5 ", "5\n", "1_0", "0x10"),
    *("1,0", "soon", "True", "\u0663", "\uff15", "\u00b2", "5\x00", "1e", "--1"),
)


@pytest.mark.parametrize("text", [*NOT_NUMBERS, "1e3", "1.5", "1e400", "1."])
def test_only_digits_are_an_integer(text: str) -> None:
    assert read_whole(text) is None


def test_an_integer_of_any_length_is_accepted() -> None:
    assert read_whole("0") == read_whole("0" * 30_000) == 0
    assert read_whole("0" * 30_000 + "7") == 7
    assert read_whole("9" * 18) == 10**18 - 1
    assert read_whole("9" * 19) == read_whole("9" * 30_000) == MAX_INTEGER


@pytest.mark.parametrize("text", [*NOT_NUMBERS, "1e3", "1.x", ".5", "1.5.1", "1.-5"])
def test_a_fraction_consists_of_digits(text: str) -> None:
    assert read_floor(text) is None


def test_a_fraction_is_truncated() -> None:
    assert [read_floor(text) for text in ("1500", "1500.9", "1500.", "0.5")] == [
        1500,
        1500,
        1500,
        0,
    ]


@pytest.mark.parametrize(
    "text", [*NOT_NUMBERS, "0", "0.0", "1e306", "1e400", "9" * 400, "1e-400", ".5", "31536001"]
)
def test_a_header_that_is_not_a_number_in_range_is_ignored(text: str) -> None:
    assert read_seconds(text.encode(), 31_536_000.0) is None


@pytest.mark.parametrize("seconds", [600, 600.0, 0.5, 1e-05, 31_536_000])
def test_a_timeout_is_read_in_the_notation_of_python(seconds: float) -> None:
    assert read_seconds(str(seconds).encode(), 31_536_000.0) == seconds


@pytest.mark.parametrize("operation", LIMITS)
def test_a_limit_of_0_disables_it(operation: str) -> None:
    limits = Limits(Settings(limit=[f"{operation}=0"]).limits(), 0, lambda _: 0, time.monotonic)
    for _ in range(1_000):
        limits.enter("key", HERE, operation)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("openai=0", (None, None)),
        ("openai=0/7", (None, 7)),
        ("openai=7/0", (7, None)),
        ("openai=7", (7, 400)),
        ("openai=0/0", (None, None)),
        ("purge-queue=7", (7, None)),
    ],
)
def test_each_of_the_two_limits_can_be_disabled(
    text: str, limit: tuple[int | None, int | None]
) -> None:
    assert Settings(limit=[text]).limits()[text.partition("=")[0]] == Limit(*limit)


def test_the_limit_of_concurrent_calls_works_alone() -> None:
    limits = Limits(Settings(limit=["openai=0/1"]).limits(), 0, lambda _: 0, time.monotonic)
    leave, status = limits.enter("key", HERE, "openai")
    assert status is None
    with pytest.raises(LimitedError):
        limits.enter("key", HERE, "openai")
    leave()
    limits.enter("key", HERE, "openai")


@pytest.mark.parametrize("name", ["queue_timeout", "execution_timeout"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e306", "0", "-1"])
def test_an_invalid_timeout_setting_is_rejected(name: str, value: str) -> None:
    with pytest.raises(ValidationError):
        Settings(**{name: value})
