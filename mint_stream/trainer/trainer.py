"""The trainer: optimizer steps of several jobs at once, in passes they share on the one resident base.

A pass packs whole micro-batches of different jobs side by side, each through its own adapter. Losses and gradients are made of a job's own
rows in its own order, so on a dense base a job ends in the same bits alone and in company.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mint_stream.errors import BaseUnusable, TrainingDiverged
from mint_stream.model.forward import PackedModel, Uncached
from mint_stream.model.passes import AdapterSet, Pass, pack
from mint_stream.trainer.losses import chunked_loss
from mint_stream.trainer.run import MicroBatch, StepReport, TrainingRun

MIN_ROWS = 4
"""From four rows up a matrix product gives each row the same bits whatever else is in it. Two limits seen with MKL on AVX-512: with several
threads a product over > 1,000 inputs is split by its rows up to 128 of them, and elementwise kernels round the last few of an array's
numbers differently unless layer widths are multiples of 32. A job alone is exact in any case."""

FILLER = ((0,) * MIN_ROWS, -1)
PROBE_TOKENS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class _Share:
    """A job's micro-batch in a pass: which of the pass's rows are learned, what they should predict, and how much it counts."""

    run: TrainingRun
    rows: tuple[int, ...]
    targets: Tensor
    weights: Tensor


class Trainer:
    """Steps training runs on a resident base. Use from one thread."""

    def __init__(self, packed: PackedModel, max_num_batched_tokens: int = 2048) -> None:
        """Raises BaseUnusable for a model whose logits are more than its head applied to its last hidden states."""
        self._packed = packed
        self._budget = max_num_batched_tokens
        self._check_head()

    def step(self, runs: Sequence[TrainingRun]) -> list[StepReport | TrainingDiverged]:
        """One optimizer step of every run, in their order. A run that diverges gives its error and leaves the others alone."""
        batches = [run.batch() for run in runs]
        losses = [0.0] * len(runs)
        for members in shared_passes([[piece.tokens for piece in batch] for batch in batches], self._budget):
            pieces = [(runs[job], batches[job][piece]) for job, piece in members]
            for (job, _), loss in zip(members, self._learn(pieces), strict=True):
                losses[job] += loss
        return [self._finish(run, batch, loss) for run, batch, loss in zip(runs, batches, losses, strict=True)]

    def _finish(self, run: TrainingRun, batch: tuple[MicroBatch, ...], loss: float) -> StepReport | TrainingDiverged:
        try:
            return run.finish(batch, loss)
        except TrainingDiverged as error:
            return error

    def _learn(self, pieces: Sequence[tuple[TrainingRun, MicroBatch]]) -> list[float]:
        """Forward and backward of one pass; each run's gradients grow by its piece. Gives the pieces' losses."""
        pass_, shares = self._pack(pieces)
        hidden = self._hidden(pass_)
        gradient = torch.zeros_like(hidden)
        losses = [self._lose(pass_, share, hidden.detach(), gradient) for share in shares]
        hidden.backward(gradient)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        for share in shares:
            share.run.adapter.collect()
        return losses

    def _lose(self, pass_: Pass, share: _Share, hidden: Tensor, gradient: Tensor) -> float:
        rows = torch.tensor(share.rows, device=hidden.device)

        def head(chunk: Tensor, part: slice) -> Tensor:
            return self._head(replace(pass_, selected=share.rows[part], scratch={}), chunk)

        total, gradient[rows] = chunked_loss(hidden[rows], head, share.targets, share.weights)
        return float(total)

    def _pack(self, pieces: Sequence[tuple[TrainingRun, MicroBatch]]) -> tuple[Pass, list[_Share]]:
        sequences: list[tuple[Sequence[int], int]] = []
        shares: list[_Share] = []
        start = 0
        for slot, (run, piece) in enumerate(pieces):
            shares.append(self._share(run, piece, start))
            sequences += [(example.tokens[:-1], slot) for example in piece.examples]
            start += piece.tokens - len(piece.examples)
        if start < MIN_ROWS:
            sequences.append(FILLER)
        adapters = AdapterSet([run.lora_weights(piece.number) for run, piece in pieces])
        return pack(sequences, (), adapters=adapters, training=True), shares

    def _share(self, run: TrainingRun, piece: MicroBatch, start: int) -> _Share:
        rows: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        for example in piece.examples:
            for position in range(1, len(example.tokens)):
                if example.weights[position]:
                    rows.append(start + position - 1)
                    targets.append(example.tokens[position])
                    weights.append(example.weights[position] / piece.batch_weight)
            start += len(example.tokens) - 1
        device = self._packed.device
        return _Share(run, tuple(rows), torch.tensor(targets, device=device), torch.tensor(weights, device=device))

    def _hidden(self, pass_: Pass) -> Tensor:
        """The last hidden states [T, H] of a pass, with gradients."""
        device = self._packed.device
        with self._packed.sites.applied(pass_), torch.set_grad_enabled(pass_.training):
            output = self._packed.model.get_decoder()(  # type: ignore[operator]  # a method of every transformers model
                input_ids=torch.tensor([pass_.tokens], device=device),
                position_ids=torch.tensor([pass_.positions], device=device),
                past_key_values=Uncached(),
                use_cache=True,
                mint_pass=pass_,
                mint_cache=None,
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _head(self, pass_: Pass, hidden: Tensor) -> Tensor:
        """Logits of the pass's selected rows, whose hidden states are `hidden`."""
        with self._packed.sites.applied(pass_):
            logits: Tensor = self._packed.model.get_output_embeddings()(hidden)  # type: ignore[operator]
        cap = getattr(self._packed.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _check_head(self) -> None:
        probe = pack([(PROBE_TOKENS, -1)])
        with torch.no_grad():
            ours = self._head(probe, self._hidden(probe))
            stock = self._packed.forward(probe)
        if not torch.allclose(ours.float(), stock.float(), rtol=1e-3, atol=1e-3):
            raise BaseUnusable(
                f"{type(self._packed.model).__name__} does more to its logits than the trainer knows of; it cannot be trained"
            )


def shared_passes(tokens: Sequence[Sequence[int]], budget: int) -> list[list[tuple[int, int]]]:
    """Which micro-batches go together: passes of (job, piece), from the tokens of each job's pieces.

    A job has at most one piece in a pass and its pieces keep their order; a pass exceeds `budget` tokens only when a piece alone does.
    """
    following = [0] * len(tokens)
    passes: list[list[tuple[int, int]]] = []
    while any(place < len(pieces) for place, pieces in zip(following, tokens, strict=True)):
        members: list[tuple[int, int]] = []
        room = budget
        for job, pieces in enumerate(tokens):
            place = following[job]
            if place < len(pieces) and (not members or pieces[place] <= room):
                members.append((job, place))
                room -= pieces[place]
                following[job] += 1
        passes.append(members)
    return passes
