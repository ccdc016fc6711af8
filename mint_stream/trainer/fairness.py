"""Whose micro-batches go into the next pass: deficit round robin over tenants, in tokens. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

QUANTUM_TOKENS = 256
"""What a tenant may spend each time its turn comes; a larger piece saves up over turns."""


@dataclass(frozen=True)
class Offer:
    """The next micro-batch of a job."""

    tenant: str
    job_id: str
    tokens: int


class TokenRotation:
    """Chooses passes.

    Laws: a pass has at most `budget` tokens unless one piece alone has more, and it leaves out no tenant's next piece that still fits.
    Of tenants that always have more to offer than fits, none is ever ahead by more than a few passes' tokens, if no piece has more than
    an even share of a pass: what larger ones leave of it goes to whoever fits. Nobody starves: where a quantum is at most half a pass and
    n tenants have offers, each of them is in at least one of 4n passes, and each of a tenant's j jobs in one of 4n·j.
    """

    def __init__(self, quantum_tokens: int = QUANTUM_TOKENS) -> None:
        self._quantum = quantum_tokens
        self._saved: dict[str, int] = {}
        """By tenant; negative where it filled up passes at the cost of its turns."""
        self._passes = 0
        self._last_tenants: dict[str, int] = {}
        self._last_jobs: dict[str, int] = {}
        """The last pass each was in."""

    def choose(self, offers: Sequence[Offer], budget: int) -> list[int]:
        """Which of `offers`, one a job, make the next pass."""
        queues = self._queues(offers)
        room = _Room(budget)
        while any(queues.values()) and not self._serve(queues, offers, room):
            for tenant, queue in queues.items():
                self._saved[tenant] += self._quantum if queue else 0
        self._fill(queues, offers, room)
        self._close([offers[place] for place in room.chosen])
        return room.chosen

    def forget(self, job_id: str) -> None:
        """The job makes no more offers."""
        self._last_jobs.pop(job_id, None)

    def _queues(self, offers: Sequence[Offer]) -> dict[str, list[int]]:
        """Each tenant's offers, jobs that waited longest first, and so the tenants. Who has none loses what it saved."""
        queues: dict[str, list[int]] = {}
        for place in sorted(range(len(offers)), key=lambda place: self._last_jobs.get(offers[place].job_id, -1)):
            queues.setdefault(offers[place].tenant, []).append(place)
        self._saved = {tenant: self._saved.get(tenant, 0) for tenant in queues}
        self._last_tenants = {tenant: self._last_tenants.get(tenant, -1) for tenant in queues}
        return dict(sorted(queues.items(), key=lambda item: self._last_tenants[item[0]]))

    def _serve(self, queues: Mapping[str, list[int]], offers: Sequence[Offer], room: "_Room") -> bool:
        """Every tenant spends what it saved. True when one could not for lack of room: the pass is as good as full."""
        full = False
        for tenant, queue in queues.items():
            while queue and (tokens := offers[queue[0]].tokens) <= self._saved[tenant]:
                if not room.takes(tokens):
                    full = True
                    break
                self._saved[tenant] -= tokens
                room.take(queue.pop(0), tokens)
        return full

    def _fill(self, queues: Mapping[str, list[int]], offers: Sequence[Offer], room: "_Room") -> None:
        """What still fits goes too, on credit."""
        for tenant, queue in queues.items():
            while queue and room.takes(tokens := offers[queue[0]].tokens):
                self._saved[tenant] -= tokens
                room.take(queue.pop(0), tokens)

    def _close(self, served: Sequence[Offer]) -> None:
        """The pass is made."""
        self._passes += 1
        self._last_tenants |= {offer.tenant: self._passes for offer in served}
        self._last_jobs |= {offer.job_id: self._passes for offer in served}


class _Room:
    """What is left of a pass."""

    def __init__(self, budget: int) -> None:
        self._left = budget
        self.chosen: list[int] = []

    def takes(self, tokens: int) -> bool:
        """Whether a piece still fits; the first one always does."""
        return tokens <= self._left or not self.chosen

    def take(self, place: int, tokens: int) -> None:
        """Put it in."""
        self.chosen.append(place)
        self._left -= tokens
