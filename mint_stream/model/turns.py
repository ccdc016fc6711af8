"""Whose turn it is on a resident base that serves and trains: steps go first, training passes take the gaps.

Law: while steps are wanted without a break, training has no more than `share` of the time, and one pass. So a request waits for one pass at
most, and a trainer for a bounded time however busy serving is.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Account:
    """How much time serving has a right to before the next training pass, for as long as it wants it. Pure."""

    share: float
    """Of the time of a base that is busy serving: what training may take, in (0, 1]."""
    owed_s: float = 0.0

    def trained(self, seconds: float) -> "Account":
        """A training pass took so long."""
        return replace(self, owed_s=seconds * (1 - self.share) / self.share)

    def served(self, seconds: float) -> "Account":
        """A step took so long."""
        return replace(self, owed_s=max(0.0, self.owed_s - seconds))


class Turns:
    """One at a time: `step` on the engine's thread, `pass_` on the trainer's. Where only one of them is used it never waits."""

    def __init__(self, share: float = 0.1, clock: Callable[[], float] = time.perf_counter) -> None:
        self._account = Account(share)
        self._clock = clock
        self._moved = threading.Condition()
        self._taken = self._busy = self._training_waits = False

    def busy(self, busy: bool) -> None:
        """Whether serving has anything to compute; between the steps of a sequence it has."""
        with self._moved:
            self._busy = busy
            self._moved.notify_all()

    @contextmanager
    def step(self) -> Iterator[None]:
        """The base is the engine's within."""
        with self._taking(lambda: not (self._training_waits and self._account.owed_s <= 0)) as begun_s:
            yield
            self._account = self._account.served(self._clock() - begun_s)

    @contextmanager
    def pass_(self) -> Iterator[None]:
        """The base is the trainer's within."""
        self._training_waits = True
        with self._taking(lambda: not self._busy or self._account.owed_s <= 0) as begun_s:
            self._training_waits = False
            try:
                yield
            finally:
                self._account = self._account.trained(self._clock() - begun_s)

    @contextmanager
    def _taking(self, due: Callable[[], bool]) -> Iterator[float]:
        with self._moved:
            self._moved.wait_for(lambda: not self._taken and due())
            self._taken = True
        try:
            yield self._clock()
        finally:
            with self._moved:
                self._taken = False
                self._moved.notify_all()
