"""Who of a group works on which partitions: everybody a fair share, and as much as can be what it had before. Pure.

Partitions are given out by number: number n of all of a group's topics goes to one member, so what an adapter's online and bulk requests
load, they load once. Laws, for members that are told apart by stable names:

- shares differ by one at most, and the same members and claims give the same seats in whatever order they come;
- when somebody leaves, only its numbers move; when somebody comes, numbers move only to it;
- who comes back with the claim of what it had gets exactly that back, if the others are who they were.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

Seats = dict[str, tuple[int, ...]]
"""By member: its numbers, ascending."""


@dataclass(frozen=True)
class Claim:
    """What a member had: now, or (`held` false) when its last process ended."""

    numbers: frozenset[int] = frozenset()
    held: bool = False


def seats(claims: Mapping[str, Claim], numbers: Collection[int]) -> Seats:
    """The numbers of each member, by stable name."""
    shares = _shares(sorted(claims), len(numbers))
    wanted = frozenset(number for claim in claims.values() if not claim.held for number in claim.numbers)
    seated = _keep(claims, shares, numbers, wanted)
    free = set(numbers) - {number for kept in seated.values() for number in kept}
    back = [(number, name) for name in sorted(claims) if not claims[name].held for number in claims[name].numbers]
    _give(seated, shares, free, sorted(back))
    _give(seated, shares, free, _by_affinity(seated, free))
    return {name: tuple(sorted(got)) for name, got in seated.items()}


def _shares(names: Sequence[str], count: int) -> dict[str, int]:
    """Who comes first by name has the one more that does not divide, so that nobody's share shrinks when another leaves."""
    each, over = divmod(count, len(names)) if names else (0, 0)
    return {name: each + (place < over) for place, name in enumerate(names)}


def _keep(claims: Mapping[str, Claim], shares: Mapping[str, int], numbers: Collection[int], wanted: Collection[int]) -> dict[str, set[int]]:
    """What each keeps of what it holds. Who holds too much lets go of what others come back for, then of what suits it least."""
    kept: dict[str, set[int]] = {}
    taken: set[int] = set()
    for name in sorted(claims):
        claim = claims[name]
        mine = sorted(claim.numbers & set(numbers) - taken if claim.held else (), key=lambda number: affinity(name, number), reverse=True)
        mine.sort(key=lambda number: number in wanted)
        kept[name] = set(mine[: shares[name]])
        taken |= kept[name]
    return kept


def _give(seated: dict[str, set[int]], shares: Mapping[str, int], free: set[int], offers: Iterable[tuple[int, str]]) -> None:
    """Numbers that are free to members that have room, in this order."""
    for number, name in offers:
        if number in free and len(seated[name]) < shares[name]:
            seated[name].add(number)
            free.discard(number)


def _by_affinity(names: Iterable[str], free: Iterable[int]) -> list[tuple[int, str]]:
    pairs = [(number, name) for number in free for name in names]
    return sorted(pairs, key=lambda pair: (affinity(pair[1], pair[0]), pair), reverse=True)


def affinity(name: str, number: int) -> bytes:
    """How well a number suits a member that remembers nothing: a rendezvous hash, the larger the better."""
    return hashlib.blake2b(f"{name}/{number}".encode(), digest_size=8).digest()
