"""When a crashed child may start again. Pure: crashes and lifetimes in, a delay out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPolicy:
    """Doubling delays after crashes in a row; after `crashes_allowed` of them the child is given up."""

    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    crashes_allowed: int = 5
    healthy_after_s: float = 60.0
    """A child that lived this long had a fresh start: its earlier crashes are forgotten."""

    def crashes_after(self, crashes: int, lived_s: float) -> int:
        """Crashes in a row once a child that had crashed `crashes` times ended again after `lived_s`."""
        return 1 if lived_s >= self.healthy_after_s else crashes + 1

    def delay_s(self, crashes: int) -> float | None:
        """Seconds to wait after the n-th crash in a row (n from 1). None: give up."""
        if crashes > self.crashes_allowed:
            return None
        return min(self.first_delay_s * 2.0 ** (crashes - 1), self.longest_delay_s)
