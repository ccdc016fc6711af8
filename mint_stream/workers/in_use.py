"""Which adapters are in use here, and for which of them there is room to keep what their production was. Pure: its time is askings."""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass
class _Use:
    last: int = 0
    before: int = 0
    """When it was asked for the last time, and the time before that; 0 is never."""
    wanted_bytes: int | None = None
    """Of what there is to keep."""


class InUse:
    """The adapters asked for last, `remembered` of them at most; what is kept for them has `budget_bytes` together.

    Laws: kept are adapters in use, never more than the budget in all. An adapter without room displaces only such as were not asked
    for since it was itself asked for the time before: one that was never asked for before displaces nobody, nor do adapters in a round.
    """

    def __init__(self, budget_bytes: int, remembered: int) -> None:
        self.budget_bytes = budget_bytes
        self.kept_bytes = 0
        self._remembered = remembered
        self._uses: OrderedDict[str, _Use] = OrderedDict()
        self._kept: OrderedDict[str, None] = OrderedDict()
        self._askings = 0

    def __contains__(self, adapter_id: str) -> bool:
        return adapter_id in self._uses

    @property
    def kept(self) -> tuple[str, ...]:
        """Those that something is kept for, the one asked for the longest ago first."""
        return tuple(self._kept)

    def ask(self, adapter_id: str) -> str | None:
        """Count a use. Gives the adapter that is not in use any more because of it; nothing is kept for that one."""
        self._askings += 1
        use = self._uses.setdefault(adapter_id, _Use())
        use.before, use.last = use.last, self._askings
        self._uses.move_to_end(adapter_id)
        if adapter_id in self._kept:
            self._kept.move_to_end(adapter_id)
        return self._forget_one() if len(self._uses) > self._remembered else None

    def want(self, adapter_id: str, size_bytes: int | None) -> None:
        """There is something of this size to keep for an adapter in use, or nothing (None). What was kept for it is not any more."""
        self._leave(adapter_id)
        self._uses[adapter_id].wanted_bytes = size_bytes

    def enter(self, adapter_id: str) -> list[str] | None:
        """Keep what is wanted for an adapter in use: gives those displaced for it. None: no room, nothing wanted, or kept already."""
        use = self._uses[adapter_id]
        if use.wanted_bytes is None or adapter_id in self._kept:
            return None
        displaced = self._idle_since(use.before, use.wanted_bytes)
        if displaced is not None:
            for other in displaced:
                self._leave(other)
            self._kept[adapter_id] = None
            self.kept_bytes += use.wanted_bytes
        return displaced

    def _idle_since(self, asking: int, size_bytes: int) -> list[str] | None:
        """Of those not asked for since, as many as make room; None when all of them do not."""
        found: list[str] = []
        room = self.budget_bytes - self.kept_bytes
        for other in self._kept:
            if room >= size_bytes or self._uses[other].last > asking:
                break
            found.append(other)
            room += self._uses[other].wanted_bytes or 0
        return found if room >= size_bytes else None

    def _forget_one(self) -> str:
        oldest = next(iter(self._uses))
        self._leave(oldest)
        del self._uses[oldest]
        return oldest

    def _leave(self, adapter_id: str) -> None:
        if adapter_id in self._kept:
            del self._kept[adapter_id]
            self.kept_bytes -= self._uses[adapter_id].wanted_bytes or 0
