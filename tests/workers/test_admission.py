"""By when a request must be answered: what it asks for, within what the worker allows, whatever its producer's clock says."""

import threading
import time
from collections.abc import Iterator

import pytest

from mint_stream.catalog import Catalog
from mint_stream.messages.inference import InferenceRequest
from mint_stream.workers.admission import Admission, AdmissionLimits
from tests.serving_desk import BASE, ByteEncoder

DEFAULT_S, MOST_S = 30.0, 60.0
HOUR_MS = 3_600_000


@pytest.fixture
def admission() -> Iterator[Admission]:
    with Catalog(None, 1) as catalog:
        yield Admission(catalog, ByteEncoder(), BASE, AdmissionLimits(256, DEFAULT_S, MOST_S))


def left_s(admission: Admission, timestamp_ms: float, deadline_at_ms: int | None = None) -> float:
    """How long a request has from now."""
    request = InferenceRequest(request_id="r", prompt="p", deadline_at_ms=deadline_at_ms)
    return admission.deadline_s(request, int(timestamp_ms)) - time.monotonic()


def test_a_request_without_a_deadline_has_the_default_from_when_it_was_sent(admission: Admission) -> None:
    now_ms = time.time() * 1000
    assert DEFAULT_S - 1 < left_s(admission, now_ms) <= DEFAULT_S
    assert left_s(admission, now_ms - 10_000) <= DEFAULT_S - 10


def test_a_producer_whose_clock_is_ahead_has_no_more_time_than_others(admission: Admission) -> None:
    ahead_ms = time.time() * 1000 + HOUR_MS
    assert left_s(admission, ahead_ms) <= DEFAULT_S
    assert left_s(admission, ahead_ms, int(ahead_ms)) <= MOST_S


def test_no_deadline_is_further_away_than_the_workers_longest(admission: Admission) -> None:
    now_ms = time.time() * 1000
    assert MOST_S - 1 < left_s(admission, now_ms, int(now_ms) + HOUR_MS) <= MOST_S


def test_a_deadline_of_0_is_a_deadline_and_past(admission: Admission) -> None:
    assert left_s(admission, time.time() * 1000, 0) < 0


class ThreadsOf(ByteEncoder):
    """Remembers on which threads it encoded."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def encode(self, request: InferenceRequest) -> tuple[int, ...]:
        self.seen.append(threading.get_ident())
        return super().encode(request)


async def test_text_is_encoded_off_the_event_loop_and_tokens_are_taken_as_they_are() -> None:
    encoder = ThreadsOf()
    with Catalog(None, 1) as catalog:
        admission = Admission(catalog, encoder, BASE, AdmissionLimits(256, DEFAULT_S, MOST_S))
        by_tokens = await admission.admit(InferenceRequest(request_id="r", prompt_tokens=(7, 8)), time.monotonic() + 60)
        assert (by_tokens.prompt_tokens, encoder.seen) == ((7, 8), [])
        by_text = await admission.admit(InferenceRequest(request_id="r", prompt="ab"), time.monotonic() + 60)
    assert by_text.prompt_tokens == (97, 98)
    assert len(encoder.seen) == 1 and threading.get_ident() not in encoder.seen
