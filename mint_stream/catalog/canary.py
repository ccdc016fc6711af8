"""The canary: a revision that a share of an adapter's production requests is answered by, to be judged on real ones.

Laws: a request falls to a canary or not by its name alone, so a retry on any worker is answered by the same revision;
whoever falls to a canary of some share falls to it at every larger share; a canary is announced and is not production.
"""

import hashlib
from dataclasses import dataclass, replace

from mint_stream.catalog.aliases import PRODUCTION
from mint_stream.catalog.case import Case
from mint_stream.catalog.state import Decision
from mint_stream.messages.adapters import Canary, CanarySet, Head, Revision
from mint_stream.messages.inference import RequestName

_WHOLE = 10_000


@dataclass(frozen=True, slots=True)
class Chosen:
    """The revision that answers a request, whether as its adapter's canary, and the adapter's spread."""

    revision: Revision
    canary: bool
    spread: int


def falls_to(canary: Canary, request: RequestName) -> bool:
    """Whether the canary answers this request of (tenant, request_id)."""
    return draw(request) < canary.share_basis_points


def draw(request: RequestName) -> int:
    """The request's lot, from 0 to 9,999: the first 8 bytes of sha256(`tenant/request_id`), big-endian, modulo 10,000."""
    hashed = hashlib.sha256("/".join(request).encode()).digest()
    return int.from_bytes(hashed[:8], "big") % _WHOLE


def settled(case: Case, decision: Decision) -> Decision:
    """The decision, and where it took away what its adapter's canary stands on, the end of the canary."""
    head = decision.head
    if head is None or head.canary is None or _stands(head, head.canary, decision):
        return decision
    ended = CanarySet(**case.stamp, canary=None, previous=head.canary)
    return replace(decision, events=(*decision.events, ended), head=head.model_copy(update={"canary": None}))


def _stands(head: Head, canary: Canary, decision: Decision) -> bool:
    gone = {revision.number for revision in decision.revisions if revision.state != "announced"}
    return canary.number not in gone and head.aliases.get(PRODUCTION) not in (None, canary.number)
