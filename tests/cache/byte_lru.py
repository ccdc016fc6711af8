"""Plain LRU under a byte budget: what the tiers' policy (residents.py) is measured against. Pure bookkeeping, as that one is."""

from collections import Counter, OrderedDict
from typing import Generic, TypeVar

Key = TypeVar("Key")


class ByteLru(Generic[Key]):
    """Entries in the order of their last use, some leased (in use), some kept (wanted back soon).

    Laws: a leased entry is never evicted. The bytes held never exceed the budget. Eviction takes the least recently used entry that is
    neither leased nor kept, and kept ones only when no other is left. Nothing is evicted for an entry that cannot be let in.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._sizes: OrderedDict[Key, int] = OrderedDict()
        self._leases: Counter[Key] = Counter()
        self._kept: set[Key] = set()

    def __contains__(self, key: Key) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def keys(self) -> list[Key]:
        """All keys, the least recently used first."""
        return list(self._sizes)

    def fits(self, size_bytes: int) -> bool:
        """Whether room for a new entry of this size could be made now."""
        leased_bytes = sum(self._sizes[key] for key in self._leases)
        return leased_bytes + size_bytes <= self.budget_bytes

    def free_bytes(self) -> int:
        """Room that needs no eviction."""
        return self.budget_bytes - self.used_bytes

    def add(self, key: Key, size_bytes: int) -> list[Key]:
        """Let a new entry in as the most recently used; gives the keys evicted for it. Raises ValueError unless it is new and `fits`."""
        if key in self._sizes:
            raise ValueError(f"{key} is here already")
        evicted = self.make_room(size_bytes)
        self._sizes[key] = size_bytes
        self.used_bytes += size_bytes
        return evicted

    def touch(self, key: Key) -> bool:
        """Mark as just used; False when it is not here."""
        if key not in self._sizes:
            return False
        self._sizes.move_to_end(key)
        return True

    def lease(self, key: Key) -> None:
        """Protect an entry that is here, until as many `release`s."""
        self._sizes.move_to_end(key)
        self._leases[key] += 1

    def release(self, key: Key) -> None:
        """Undo one `lease`; the entry counts as just used."""
        self._leases[key] -= 1
        if not self._leases[key]:
            del self._leases[key]
        self._sizes.move_to_end(key)

    def keep(self, keys: set[Key]) -> None:
        """From now on, evict these last. They need not be here."""
        self._kept = keys

    def make_room(self, size_bytes: int) -> list[Key]:
        """Evict until `free_bytes()` is at least this; gives the keys. Raises ValueError unless it `fits`."""
        if not self.fits(size_bytes):
            raise ValueError(f"what is leased leaves no room for {size_bytes} bytes of {self.budget_bytes}")
        evicted: list[Key] = []
        while self.free_bytes() < size_bytes:
            key = next(key for kept in (False, True) for key in self._sizes if key not in self._leases and (key in self._kept) == kept)
            self.used_bytes -= self._sizes.pop(key)
            evicted.append(key)
        return evicted
