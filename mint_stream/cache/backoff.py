"""How often, and how far apart, a passing failure is tried again. Pure: luck comes in as an argument."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """`attempts` in all; after `first_s`, then twice as long each time, never longer than `longest_s`."""

    attempts: int = 4
    first_s: float = 0.1
    longest_s: float = 5.0

    def delay_s(self, failed: int, luck: float = 1.0) -> float:
        """The wait after the `failed`-th failure (from 1): half of it certain, the other half times `luck` in [0, 1].

        So workers that failed together do not come back together."""
        return min(self.longest_s, self.first_s * float(2 ** min(failed - 1, 62))) * (0.5 + 0.5 * luck)
