"""Tenant shares: how many of a worker's open requests may be one tenant's. Pure."""

from collections import Counter


class TenantShares:
    """Counts open requests of the online lane by tenant.

    Laws: no tenant ever holds more than its share of the window, however it floods; a tenant below its share is never refused; what is
    released can be taken again.
    """

    def __init__(self, window: int, share: float) -> None:
        """Of `window` open requests one tenant may hold `share`, at least one. A share of 1 limits nobody."""
        if not 0.0 < share <= 1.0:
            raise ValueError(f"a share is more than 0 and at most 1, not {share}")
        self.most = max(1, int(window * share))
        self._open: Counter[str] = Counter()

    def take(self, tenant: str) -> bool:
        """Count one more request of `tenant`; False, and nothing counted, when it holds its share already."""
        if self._open[tenant] >= self.most:
            return False
        self._open[tenant] += 1
        return True

    def release(self, tenant: str) -> None:
        """One of its requests is closed."""
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant]
