"""Cancellations: who is cancelled is known, who is being worked on is told, what is old or unreadable is nothing."""

import time
from uuid import uuid4

import pytest

from mint_stream.bus.table import LogRecord
from mint_stream.messages.inference import Cancellation, RequestName
from mint_stream.workers import cancellations
from mint_stream.workers.cancellations import Cancellations


class Told:
    """What the engine was asked to stop."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.tenants: list[str] = []

    def __call__(self, request: RequestName, reason: str) -> bool:
        self.calls.append((request[1], reason))
        self.tenants.append(request[0])
        return True


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def known(told: Told) -> Cancellations:
    return Cancellations(told, keep_s=60)


def mine(request_id: str) -> RequestName:
    return "default", request_id


def record(value: bytes | None, age_s: float = 0.0) -> LogRecord:
    return LogRecord(b"k", value, (), 0, int((time.time() - age_s) * 1000))


def cancelled(request_id: str, reason: str = "", **fields: object) -> bytes:
    return Cancellation(request_id=request_id, reason=reason, cancelled_at_ms=1, **fields).encode()


def test_a_cancelled_request_is_known_with_its_reason_and_stopped_at_once(known: Cancellations, told: Told) -> None:
    known.apply(0, [record(cancelled("r", "changed my mind"))], 1)
    assert known.reason(mine("r")) == "changed my mind"
    assert known.reason(mine("s")) is None
    assert told.calls == [("r", "changed my mind")]


def test_who_gives_no_reason_is_its_sender(known: Cancellations) -> None:
    known.apply(0, [record(cancelled("r"))], 1)
    assert known.reason(mine("r")) == "cancelled by its sender"


def test_what_is_older_than_any_deadline_is_forgotten_on_replay(known: Cancellations, told: Told) -> None:
    known.apply(0, [record(cancelled("old"), age_s=61), record(cancelled("new"), age_s=50)], 2)
    assert (known.reason(mine("old")), known.reason(mine("new"))) == (None, "cancelled by its sender")
    assert [request_id for request_id, _ in told.calls] == ["new"]


@pytest.mark.parametrize("value", [None, b"", b"junk", b"\xff", b'{"request_id": ""}', b'{"cancelled_at_ms": 1}'])
def test_what_names_no_request_disturbs_no_other(known: Cancellations, told: Told, value: bytes | None) -> None:
    known.apply(0, [record(cancelled("a")), record(value), record(cancelled("b"))], 3)
    assert [request_id for request_id, _ in told.calls] == ["a", "b"]


def test_a_batchs_cancellation_is_not_a_requests(known: Cancellations, told: Told) -> None:
    known.apply(0, [record(Cancellation(batch_id="b", cancelled_at_ms=1).encode())], 1)
    assert known.reason(mine("b")) is None and not told.calls


def test_a_cancellation_is_of_its_own_tenants_request_alone(known: Cancellations, told: Told) -> None:
    known.apply(0, [record(cancelled("r", "not yours", tenant="theirs"))], 1)
    assert (known.reason(("theirs", "r")), known.reason(mine("r"))) == ("not yours", None)
    assert told.tenants == ["theirs"]


def test_a_later_reason_replaces_an_earlier_one(known: Cancellations, told: Told) -> None:
    known.apply(0, [record(cancelled("r", "first")), record(cancelled("r", "second"))], 2)
    assert known.reason(mine("r")) == "second"
    assert len(told.calls) == 2


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(known: Cancellations) -> None:
    names = [uuid4().hex for _ in range(3)]
    known.apply(0, [record(cancelled(name)) for name in names], 3)
    filler = record(cancelled("filler")).value or b""
    many = (filler.replace(b"filler", b"f%d" % number) for number in range(cancellations.REMEMBERED - 2))
    known.apply(0, [record(value) for value in many], 4)
    assert [known.reason(mine(name)) is None for name in names] == [True, False, False]
