"""What a job does when: the order of its examples, how a batch is cut, and the learning rate of each step. Pure.

Everything here follows from the job's own settings and its step, so it needs no state in a checkpoint but the step and the cursor.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

from mint_stream.messages.training import Hyperparameters
from mint_stream.trainer.examples import Learnable


def learning_rate(settings: Hyperparameters, step: int) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then constant, or a linear or cosine decay to 0 after the last."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    done = (step - settings.warmup_steps) / (settings.steps - settings.warmup_steps)
    if settings.schedule == "linear":
        return settings.learning_rate * (1.0 - done)
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.learning_rate


class DataOrder:
    """The endless order in which a job sees its examples: epoch after epoch, each permuted by (seed, epoch) alone.

    A pure function of the cursor (examples seen so far), so a resumed job reads exactly what the uninterrupted one would have.
    """

    def __init__(self, seed: int, count: int) -> None:
        self._seed = seed
        self._count = count
        self._permutation = lru_cache(maxsize=2)(self._permuted)

    def batch(self, cursor: int, size: int) -> tuple[int, ...]:
        """The numbers of the `size` examples from `cursor` on."""
        return tuple(self._permutation(place // self._count)[place % self._count] for place in range(cursor, cursor + size))

    def _permuted(self, epoch: int) -> tuple[int, ...]:
        return tuple(sorted(range(self._count), key=lambda number: _draw(self._seed, epoch, number)))


def _draw(seed: int, epoch: int, number: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{epoch}/{number}".encode(), digest_size=16).digest()


def micro_batches(examples: Sequence[Learnable], max_tokens: int) -> tuple[tuple[Learnable, ...], ...]:
    """Cut a batch, in order, into pieces of at most `max_tokens` tokens; an example longer than that goes alone."""
    pieces: list[list[Learnable]] = []
    room = 0
    for example in examples:
        if not pieces or example.length > room:
            pieces.append([])
            room = max_tokens
        pieces[-1].append(example)
        room -= example.length
    return tuple(tuple(piece) for piece in pieces)
