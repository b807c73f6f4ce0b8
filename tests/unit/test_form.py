"""The fields that are read from a form."""

import os

import pytest

from proxy.api.openai.form import peek_form

TYPE = b"multipart/form-data; boundary=frontier"
FILE = (
    b'Content-Disposition: form-data; name="file"; filename="model.wav"\r\n'
    b"Content-Type: audio/wav\r\n\r\n%b\r\n"
)
MODEL = b'Content-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
STREAM = b'Content-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'


def form(*parts: bytes) -> bytes:
    return b"".join(b"--frontier\r\n" + part for part in parts) + b"--frontier--\r\n"


@pytest.mark.parametrize("at", [0, 1, 2])
def test_model_and_stream_are_found_at_any_position(at: int) -> None:
    parts = [MODEL, STREAM]
    parts.insert(at, FILE % os.urandom(1_000_000))
    seen = peek_form(TYPE, form(*parts))
    assert (seen.model, seen.is_streaming) == ("whisper", True)


@pytest.mark.parametrize(
    ("content_type", "head"),
    [
        (
            b'Multipart/Form-Data; charset=utf-8; Boundary="frontier"',
            b'content-disposition: form-data; name="model"',
        ),
        (b"multipart/form-data;boundary=frontier", b"Content-Disposition:form-data;name=model"),
        (
            TYPE,
            (
                b"Content-Type: text/plain; charset=utf-8\r\n"
                b'Content-Disposition: form-data; name="model"'
            ),
        ),
        (TYPE, b'Content-Disposition: form-data; name="model"\r\nContent-Type: text/plain'),
    ],
)
def test_variants_of_the_syntax_are_accepted(content_type: bytes, head: bytes) -> None:
    body = b"a preamble\r\n" + form(head + b"\r\n\r\nwhisper\r\n")
    assert peek_form(content_type, body).model == "whisper"


@pytest.mark.parametrize("value", [b"false", b"", b"1", b"true\r\n"])
def test_only_a_literal_true_selects_a_stream(value: bytes) -> None:
    assert not peek_form(TYPE, form(STREAM.replace(b"true", value))).is_streaming


def test_an_empty_model_counts_as_missing() -> None:
    assert peek_form(TYPE, form(MODEL.replace(b"whisper", b""), STREAM)).model is None


def test_the_first_of_two_fields_is_used() -> None:
    assert peek_form(TYPE, form(MODEL, MODEL.replace(b"whisper", b"other"))).model == "whisper"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (TYPE, b""),
        (TYPE, form()),
        (TYPE, form(MODEL)[:-20]),
        (TYPE, form(FILE % MODEL)),
        (TYPE, form(FILE % (b"\r\n--front\r\n" + MODEL))),
        (TYPE, form(MODEL.replace(b"model", b"my-model"))),
        (TYPE, form(MODEL.replace(b"whisper", b"w" * 2_000))),
        (TYPE, form(b"x" * 5_000 + MODEL)),
        (TYPE, form(*[b"\r\n\r\n"] * 1_000, MODEL)),
        (TYPE, b"--frontier" * 100_000),
        (TYPE, b"--frontier\r\n\r\n" * 100_000),
        (b"multipart/form-data", form(MODEL)),
        (b"multipart/form-data; boundary=", form(MODEL)),
        (b"multipart/form-data; boundary=another", form(MODEL)),
    ],
)
def test_missing_and_malformed_fields_are_not_found(content_type: bytes, body: bytes) -> None:
    assert peek_form(content_type, body).model is None


def test_invalid_utf8_in_the_model_is_replaced() -> None:
    assert peek_form(TYPE, form(MODEL.replace(b"whisper", b"\xff"))).model == "\ufffd"
