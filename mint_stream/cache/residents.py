"""Which entries stay under a byte budget: the one policy of every tier. Pure bookkeeping: keys and sizes, no values, no clock."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")

MOST_USES = 2
"""Uses that are counted for an entry between two looks at it: what was hot goes within a few rounds once it is not asked for any more."""
TRIAL_SHARE = 0.2
"""Of the budget: what newcomers may hold before one of them has to prove itself or go."""


class Residents(Generic[Key]):
    """Entries under S3-FIFO (Yang et al., SOSP 2023): newcomers queue on trial; for those used again there each use buys a round.

    What left the trial is remembered by name, for as many bytes as the budget has: asked for again, it skips the trial. So one pass over
    everything (a scan) displaces little of what is used often; but each time a whole budget's bytes have passed through the trial, one of
    the others that nobody used meanwhile goes, so that none stays for ever. Chosen over LRU by hits (tests/cache/test_residents.py).
    Some are leased (in use), some kept (wanted back soon).

    Laws: a leased entry is never evicted. What `add` lets in never exceeds the budget. Kept entries are evicted only when no other is left.
    Nothing is evicted for an entry that cannot be let in, and nothing more once there is room.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.leased_bytes = 0
        self._sizes: OrderedDict[Key, int] = OrderedDict()
        self._uses: dict[Key, int] = {}
        self._trial: OrderedDict[Key, None] = OrderedDict()
        self._proven: OrderedDict[Key, None] = OrderedDict()
        self._gone: OrderedDict[Key, int] = OrderedDict()
        self._trial_bytes = self._gone_bytes = self._passed_bytes = 0
        self._leases: Counter[Key] = Counter()
        self._kept: frozenset[Key] = frozenset()

    def __contains__(self, key: Key) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def keys(self) -> list[Key]:
        """All keys, the least recently used first."""
        return list(self._sizes)

    def size(self, key: Key) -> int:
        """Bytes of an entry that is here."""
        return self._sizes[key]

    def fits(self, size_bytes: int) -> bool:
        """Whether room for a new entry of this size could be made now."""
        return self.leased_bytes + size_bytes <= self.budget_bytes

    def free_bytes(self) -> int:
        """Room that needs no eviction."""
        return self.budget_bytes - self.used_bytes

    def add(self, key: Key, size_bytes: int) -> list[Key]:
        """Let a new entry in; gives the keys evicted for it. That it came is no use yet. Raises ValueError unless it is new and `fits`."""
        if key in self._sizes:
            raise ValueError(f"{key} is here already")
        evicted = self.make_room(size_bytes)
        self.admit(key, size_bytes)
        return evicted

    def admit(self, key: Key, size_bytes: int) -> None:
        """Count an entry that is there whether it fits or not, as files are. Where that exceeds the budget, the next to make room must."""
        self._sizes[key] = size_bytes
        self._uses[key] = 0
        self.used_bytes += size_bytes
        if self._returned(key):
            self._proven[key] = None
        else:
            self._trial[key] = None
            self._trial_bytes += size_bytes

    def touch(self, key: Key) -> bool:
        """Count a use; False when it is not here."""
        if key not in self._sizes:
            return False
        self._sizes.move_to_end(key)
        self._uses[key] = min(MOST_USES, self._uses[key] + 1)
        return True

    def lease(self, key: Key) -> None:
        """Protect an entry that is here, until as many `release`s. Counts no use: `touch` does."""
        if not self._leases[key]:
            self.leased_bytes += self._sizes[key]
        self._leases[key] += 1
        self._sizes.move_to_end(key)

    def release(self, key: Key) -> None:
        """Undo one `lease`."""
        self._leases[key] -= 1
        if not self._leases[key]:
            del self._leases[key]
            self.leased_bytes -= self._sizes[key]
        self._sizes.move_to_end(key)

    def keep(self, keys: set[Key]) -> None:
        """From now on, evict these last. They need not be here."""
        self._kept = frozenset(keys)

    def make_room(self, size_bytes: int) -> list[Key]:
        """Evict until `free_bytes()` is at least this; gives the keys. Raises ValueError unless it `fits`."""
        if not self.fits(size_bytes):
            raise ValueError(f"what is leased leaves no room for {size_bytes} bytes of {self.budget_bytes}")
        evicted: list[Key] = []
        while self.free_bytes() < size_bytes:
            evicted.append(self._evict_one())
        return evicted

    def evict_one(self) -> Key | None:
        """Evict the next in turn although there may be room, for who needs it in one piece. None when all that is here is leased."""
        return self._evict_one() if self.leased_bytes < self.used_bytes or len(self._leases) < len(self._sizes) else None

    def discard(self, key: Key) -> None:
        """Forget an entry that is gone, if it is known and not leased."""
        if key in self._sizes and not self._leases[key]:
            self._drop(key)

    def _evict_one(self) -> Key:
        key = self._victim(lambda one: one not in self._leases and one not in self._kept)
        key = key or self._victim(lambda one: one not in self._leases)
        assert key is not None, "whoever asks has seen that not all is leased"
        on_trial = key[0] in self._trial
        size = self._drop(key[0])
        self._passed_bytes = self._passed_bytes + size if on_trial else 0
        if on_trial:
            self._remember(key[0], size)
        return key[0]

    def _victim(self, allowed: Callable[[Key], bool]) -> tuple[Key] | None:
        """In a tuple, as a key may be falsy."""
        if self._passed_bytes >= self.budget_bytes and (aged := self._aged(allowed)) is not None:
            return aged
        on_trial_first = self._trial_bytes >= TRIAL_SHARE * self.budget_bytes
        passes = (self._of_trial, self._of_proven) if on_trial_first else (self._of_proven, self._of_trial)
        return passes[0](allowed) or passes[1](allowed) or self._of_proven(allowed)  # where a look at newcomers has moved them

    def _aged(self, allowed: Callable[[Key], bool]) -> tuple[Key] | None:
        """A look at the queue of the proven, each of which it costs one use: one that was not used since the last look goes."""
        self._passed_bytes = 0
        return self._of_proven(allowed, rounds=1)

    def _of_trial(self, allowed: Callable[[Key], bool]) -> tuple[Key] | None:
        """The oldest newcomer that nobody asked for since; those used or protected before it move on."""
        while self._trial:
            key = next(iter(self._trial))
            if allowed(key) and not self._uses[key]:
                return (key,)
            self._leave_trial(key)
            self._uses[key] = 0
            self._proven[key] = None
        return None

    def _of_proven(self, allowed: Callable[[Key], bool], rounds: int = MOST_USES + 1) -> tuple[Key] | None:
        """The first whose uses are used up; each that stays goes to the end. After MOST_USES rounds any has come to that."""
        for _ in range(rounds * len(self._proven)):
            key = next(iter(self._proven))
            if allowed(key) and not self._uses[key]:
                return (key,)
            self._uses[key] -= bool(self._uses[key])
            self._proven.move_to_end(key)
        return None

    def _drop(self, key: Key) -> int:
        size = self._sizes.pop(key)
        del self._uses[key]
        self.used_bytes -= size
        if key in self._trial:
            self._trial_bytes -= size
            del self._trial[key]
        else:
            del self._proven[key]
        return size

    def _leave_trial(self, key: Key) -> None:
        del self._trial[key]
        self._trial_bytes -= self._sizes[key]

    def _remember(self, key: Key, size_bytes: int) -> None:
        self._gone[key] = size_bytes
        self._gone_bytes += size_bytes
        while self._gone_bytes > self.budget_bytes:
            self._gone_bytes -= self._gone.popitem(last=False)[1]

    def _returned(self, key: Key) -> bool:
        """Whether it was remembered; now that it is here again, it no longer is."""
        size = self._gone.pop(key, None)
        self._gone_bytes -= size or 0
        return size is not None
