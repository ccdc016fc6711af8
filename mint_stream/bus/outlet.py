"""Decides what an intake hands out now: fair over partitions, within the bounds, suspects alone. No input or output, no time."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mint_stream.bus.delivery import Delivery, record_bytes
from mint_stream.bus.tenure import Tenure


@dataclass(frozen=True)
class IntakeLimits:
    """How much an intake holds, and how it behaves in time."""

    max_records: int = 512
    """Fetched and not closed, over all partitions."""
    max_bytes: int = 64 * 1024 * 1024
    """Of keys, values and headers of the same; one more fetch may come on top, and a single larger record always passes."""
    low_water: float = 0.5
    """Fetching goes on when what is held has fallen to this part of a bound."""
    takeovers_before_suspect: int = 3
    """After so many vanished owners the suspects run one at a time."""
    careful_records: int = 16
    """In flight a partition after its owner vanished, until what was out is closed."""
    commit_interval_s: float = 0.5
    commit_timeout_s: float = 5.0
    session_timeout_s: float = 10.0
    """A worker silent for so long loses its partitions."""
    stuck_after_s: float = 60.0
    """An assigned, unpaused partition with records to fetch and no movement for so long fails the intake."""


class Outlet:
    """The deliveries between fetched and closed.

    `send` puts a delivery before the worker, `bury` gets the condemned ones, `make` builds a delivery from a fetched record."""

    def __init__(
        self,
        limits: IntakeLimits,
        make: Callable[[Tenure, Any], Delivery],
        send: Callable[[Tenure, Delivery], None],
        bury: Callable[[Delivery], None],
    ) -> None:
        self.limits = limits
        self.open_records = 0
        self.open_bytes = 0
        self.closed_for_good = False
        self._make = make
        self._send = send
        self._bury = bury
        self._turn: deque[Tenure] = deque()

    def seat(self, tenures: Iterable[Tenure]) -> None:
        """These partitions take turns from now on."""
        self._turn = deque(tenures)

    @property
    def held_records(self) -> int:
        """Fetched and not closed."""
        return self.open_records + sum(len(tenure.fetched) for tenure in self._turn)

    @property
    def held_bytes(self) -> int:
        """Bytes fetched and not closed."""
        return self.open_bytes + sum(tenure.fetched_bytes for tenure in self._turn)

    def full(self, part: float = 1.0) -> bool:
        """Whether what is held has reached this part of a bound."""
        return self.held_records >= part * self.limits.max_records or self.held_bytes >= part * self.limits.max_bytes

    def pump(self) -> bool:
        """Hand out whatever may go out now. True when something waits for a commit before it goes."""
        self._hand_out()
        return any(tenure.staged for tenure in self._turn)

    def _hand_out(self) -> None:
        waiting = [tenure for tenure in self._turn if tenure.held and tenure.fetched and tenure.head() is not None]
        if self.closed_for_good or not waiting or any(tenure.suspicion.trying is not None for tenure in self._turn):
            return
        suspect = next((tenure for tenure in waiting if self._suspects_head(tenure)), None)
        if suspect is not None:
            self._try_alone(suspect)
            return
        while waiting:
            waiting = [tenure for tenure in waiting if self._give(tenure)]
        self._turn.rotate(-1)

    def release(self, tenure: Tenure, delivery: Delivery) -> None:
        """The delivery was closed: its room is free."""
        self._occupy(tenure, -1, -delivery.size_bytes)

    def evict(self, tenure: Tenure) -> None:
        """The partition was lost: what was out is stale and takes no room."""
        self._occupy(tenure, -tenure.out_records, -tenure.out_bytes)

    def _occupy(self, tenure: Tenure, records: int, size_bytes: int) -> None:
        tenure.out_records += records
        tenure.out_bytes += size_bytes
        self.open_records += records
        self.open_bytes += size_bytes

    def _suspects_head(self, tenure: Tenure) -> bool:
        return tenure.suspicion.suspects(tenure.fetched[0].offset, self.limits.takeovers_before_suspect)

    def _try_alone(self, tenure: Tenure) -> None:
        if self.open_records == 0:
            tenure.suspicion.trying = tenure.fetched[0].offset
            self._deliver(tenure)

    def _give(self, tenure: Tenure) -> bool:
        """Hand out one record of the partition. False when it has none that may go; suspects need their turn alone."""
        record = tenure.head()
        if record is None or self._suspects_head(tenure) or not self._room(record):
            return False
        if not tenure.admits(record.offset, self.limits.careful_records):
            return False
        self._deliver(tenure)
        return True

    def _room(self, record: Any) -> bool:
        if self.open_records == 0:
            return True
        return self.open_records < self.limits.max_records and self.open_bytes + record_bytes(record) <= self.limits.max_bytes

    def _deliver(self, tenure: Tenure) -> None:
        careful = tenure.careful
        delivery = self._make(tenure, tenure.pop())
        tenure.tracker.delivered(delivery.offset)
        tenure.dirty = True
        self._occupy(tenure, 1, delivery.size_bytes)
        if delivery.offset == tenure.suspicion.condemned:
            self._bury(delivery)
        elif careful:
            tenure.staged.append(delivery)
        else:
            self._send(tenure, delivery)
