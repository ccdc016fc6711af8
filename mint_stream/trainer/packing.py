"""Micro-batches of several jobs side by side in one pass, and which of its rows are whose."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mint_stream.model.passes import AdapterSet, Pass, pack
from mint_stream.trainer.examples import Example
from mint_stream.trainer.objectives import Objective
from mint_stream.trainer.run import MicroBatch, TrainingRun


@dataclass(frozen=True)
class Share:
    """A job's micro-batch in a pass: which of the pass's rows are learned, what they should predict, and how that is judged."""

    run: TrainingRun
    rows: tuple[int, ...]
    targets: Tensor
    objective: Objective


def packed(pieces: Sequence[tuple[TrainingRun, MicroBatch]], device: torch.device, at_least: int) -> tuple[Pass, list[Share]]:
    """A pass of these pieces, filled up to `at_least` rows with rows of nobody."""
    sequences: list[tuple[Sequence[int], int]] = []
    shares: list[Share] = []
    start = 0
    for slot, (run, piece) in enumerate(pieces):
        whole = [sequence for example in piece.examples for sequence in example.sequences]
        rows, targets = learned_rows(whole, start)
        shares.append(Share(run, rows, torch.tensor(targets, device=device), run.task(piece).objective(device)))
        sequences += [(sequence.tokens[:-1], slot) for sequence in whole]
        start += sum(sequence.length - 1 for sequence in whole)
    adapters = AdapterSet([run.lora_weights(piece.number) for run, piece in pieces])
    return pack(filled(sequences, start, at_least), (), adapters=adapters, training=True), shares


def filled(sequences: list[tuple[Sequence[int], int]], rows: int, at_least: int) -> list[tuple[Sequence[int], int]]:
    """One more sequence, of nobody, where there are fewer than `at_least` rows."""
    return sequences if rows >= at_least else [*sequences, ((0,) * (at_least - rows), -1)]


def learned_rows(sequences: Sequence[Example], start: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The rows that predict a weighted token, and those tokens, where the sequences lie one after the other from row `start` on.

    A sequence's last token has no row: it predicts nothing.
    """
    rows: list[int] = []
    targets: list[int] = []
    for sequence in sequences:
        for position in range(1, sequence.length):
            if sequence.weights[position]:
                rows.append(start + position - 1)
                targets.append(sequence.tokens[position])
        start += sequence.length - 1
    return tuple(rows), tuple(targets)
