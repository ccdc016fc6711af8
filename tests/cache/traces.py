"""Who is asked for, in order: traces of keys by which policies are compared. The same seed gives the same trace."""

import random
from bisect import bisect
from collections.abc import Callable, Iterable
from itertools import accumulate

from mint_stream.cache import Residents
from tests.cache.byte_lru import ByteLru

Trace = list[int]


def zipf(names: int, length: int, seed: int = 0, order: list[int] | None = None) -> Trace:
    """Zipf(1.0): the n-th most popular name is asked for 1/n as often as the first. `order`: which name is the n-th."""
    draw, steps = random.Random(seed), list(accumulate(1 / rank for rank in range(1, names + 1)))
    ranks = (bisect(steps, draw.random() * steps[-1]) for _ in range(length))
    return [order[rank] if order else rank for rank in ranks]


def with_scans(names: int, length: int) -> Trace:
    """Stretches of Zipf(1.0), each followed by as many names that are asked for once and never again."""
    once = iter(range(names, names + length))
    stretches = [zipf(names, length // 20, seed) for seed in range(10)]
    return [key for stretch in stretches for key in (*stretch, *(next(once) for _ in stretch))]


def shifting(names: int, length: int) -> Trace:
    """Zipf(1.0) whose names change places ten times."""
    orders = [random.Random(seed).sample(range(names), names) for seed in range(10)]
    return [key for seed, order in enumerate(orders) for key in zipf(names, length // 10, seed, order)]


def drifting(names: int, length: int) -> Trace:
    """Zipf(1.0) in which, a hundred times, one of the two hundred most popular names changes places with any other."""
    draw, order, trace = random.Random(1), list(range(names)), Trace()
    for seed in range(100):
        trace += zipf(names, length // 100, seed, order)
        for _ in range(20):
            one, other = draw.randrange(min(200, names)), draw.randrange(names)
            order[one], order[other] = order[other], order[one]
    return trace


def hits(policy: ByteLru[int] | Residents[int], trace: Iterable[int], size: Callable[[int], int] = lambda _key: 1) -> int:
    """How many keys of the trace were there when they were asked for."""
    found = 0
    for key in trace:
        if policy.touch(key):
            found += 1
        else:
            policy.add(key, size(key))
    return found
