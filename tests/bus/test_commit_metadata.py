"""The metadata of a commit says everything and always fits."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.bus.commit_metadata import LIMIT_BYTES, decode_metadata, encode_metadata
from mint_stream.bus.offsets import WINDOW, Progress, fresh

LARGEST = 2**63 - 1 - WINDOW


def progress(base: int, bits: set[int], **extra) -> Progress:
    opened = tuple(base + bit for bit in sorted(bits | {0})) if bits else ()
    position = opened[-1] + 1 if opened else base
    return Progress(next_offset=base, position=position, open=opened, **({"high": position, "until": position} | extra))


@st.composite
def progresses(draw):
    base = draw(st.integers(0, LARGEST))
    bits = draw(st.sets(st.integers(0, WINDOW - 1), max_size=200))
    near = st.integers(base, base + WINDOW)
    return progress(
        base,
        bits,
        high=draw(near),
        until=draw(near),
        tenure=draw(st.integers(0, 2**31)),
        takeovers=draw(st.integers(0, 2**31)),
        released=draw(st.booleans()),
        trying=draw(st.none() | near),
        condemned=draw(st.none() | near),
    )


@settings(deadline=None, max_examples=40)
@given(progresses())
def test_decoding_gives_back_what_was_encoded(given_progress):
    assert decode_metadata(given_progress.next_offset, encode_metadata(given_progress)) == given_progress


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_every_pattern_of_open_offsets_in_the_window_fits_in_4096_bytes(seed, density):
    draws = random.Random(seed)
    bits = {bit for bit in range(WINDOW) if draws.random() < density} | {WINDOW - 1}
    worst = {"tenure": 2**63, "takeovers": 2**63, "high": LARGEST + WINDOW, "until": LARGEST + WINDOW}
    given_progress = progress(LARGEST, bits, **worst, trying=LARGEST + WINDOW - 1, condemned=LARGEST + WINDOW - 1, released=True)
    text = encode_metadata(given_progress)
    assert len(text.encode()) <= LIMIT_BYTES
    assert decode_metadata(LARGEST, text) == given_progress


@pytest.mark.parametrize("step", [1, 2, 3, 7, 8, 9, 255, 256])
def test_regular_patterns_fit_as_well(step):
    given_progress = progress(0, set(range(0, WINDOW, step)))
    assert len(encode_metadata(given_progress)) <= LIMIT_BYTES
    assert decode_metadata(0, encode_metadata(given_progress)) == given_progress


def test_a_span_over_the_window_is_refused():
    with pytest.raises(ValueError, match="span more than"):
        encode_metadata(progress(0, {WINDOW}))


def test_an_offset_somebody_reset_by_hand_starts_afresh():
    assert decode_metadata(12, "") == fresh(12)


@pytest.mark.parametrize(
    "text", ["hello", "{}", '{"v":2}', "[]", '{"v":1,"position":"x"}', '{"v":1,"position":0,"open":"z!!"}', "null", "7"]
)
def test_metadata_of_somebody_else_is_a_value_error(text):
    with pytest.raises(ValueError):
        decode_metadata(0, text)
