"""What each tier was asked for and what became of it: kept once, told twice, as metrics and in the worker's status."""

from typing import Literal

from mint_stream.messages.fleet import TierStatus
from mint_stream.metrics import Metrics

TierName = Literal["device", "host", "disk", "store"]


class Tally:
    """Counts of one tier since it began. The store is the last tier: it has no budget, and what it does not have is an error."""

    def __init__(self, tier: TierName, metrics: Metrics | None = None) -> None:
        self.tier: TierName = tier
        self.metrics = metrics or Metrics()
        self.budget_bytes = 0
        self.hits = self.misses = self.evictions = self.loads = 0
        self.load_s = 0.0
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes held now."""
        return self._used_bytes

    @used_bytes.setter
    def used_bytes(self, value: int) -> None:
        self._used_bytes = value
        self.metrics.tier_bytes.labels(self.tier).set(value)

    def looked(self, found: bool) -> None:
        """Somebody looked for a revision here."""
        self.hits, self.misses = self.hits + found, self.misses + (not found)
        self.metrics.tier_lookups_total.labels(self.tier, "hit" if found else "miss").inc()

    def evicted(self, count: int = 1) -> None:
        """So many gave up their places."""
        self.evictions += count
        self.metrics.tier_evictions_total.labels(self.tier).inc(count)

    def loaded(self, seconds: float) -> None:
        """One was read from here, or onto the device: how long that took."""
        self.loads, self.load_s = self.loads + 1, self.load_s + seconds
        self.metrics.tier_load_seconds.labels(self.tier).observe(seconds)

    def status(self) -> TierStatus:
        """The counts as a worker's status has them."""
        return TierStatus(
            tier=self.tier,
            used_bytes=self.used_bytes,
            budget_bytes=self.budget_bytes,
            hits=self.hits,
            misses=self.misses,
            evictions=self.evictions,
            loads=self.loads,
            mean_load_ms=self.load_s / self.loads * 1000 if self.loads else 0.0,
        )
