import asyncio

import pytest

from worker_vllm.engine.base import EngineError
from worker_vllm.foreign import ForeignErrors


def test_any_exception_is_translated_and_becomes_the_cause() -> None:
    original = LookupError("no such thing")
    with (
        pytest.raises(EngineError, match=r"^failed: no such thing$") as caught,
        ForeignErrors(EngineError, lambda error: f"failed: {error}"),
    ):
        raise original
    assert caught.value.__cause__ is original


def test_an_exception_of_the_same_class_passes_unchanged() -> None:
    original = EngineError("as it is")
    with pytest.raises(EngineError) as caught, ForeignErrors(EngineError, repr):
        raise original
    assert caught.value is original


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, KeyboardInterrupt])
def test_the_end_of_a_task_or_of_the_process_passes_unchanged(error: type[BaseException]) -> None:
    with pytest.raises(error), ForeignErrors(EngineError, repr):
        raise error


def test_blocks_can_share_an_instance() -> None:
    translated = ForeignErrors(EngineError, str)
    with pytest.raises(EngineError, match=r"^inner$"), translated, translated:
        raise LookupError("inner")
    with pytest.raises(EngineError, match=r"^later$"), translated:
        raise LookupError("later")
