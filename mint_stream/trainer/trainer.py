"""The trainer: optimizer steps of several jobs at once, in passes they share on the one resident base.

A pass packs whole micro-batches of different jobs side by side, each through its own adapter. Losses and gradients are made of a job's own
rows in its own order, so on a dense base a job ends in the same bits alone and in company.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mint_stream.errors import EngineFailed, TrainingDiverged
from mint_stream.model.forward import PackedModel
from mint_stream.model.passes import Pass
from mint_stream.trainer.body import Body
from mint_stream.trainer.exact_rows import Rows, exact_rows
from mint_stream.trainer.examples import Preference
from mint_stream.trainer.fairness import Offer, TokenRotation
from mint_stream.trainer.objectives import chunked_loss
from mint_stream.trainer.packing import Share, packed
from mint_stream.trainer.run import MicroBatch, StepReport, TrainingRun

log = logging.getLogger(__name__)

Outcome = StepReport | TrainingDiverged | EngineFailed


class Trainer:
    """Steps training runs on a resident base. Use from one thread."""

    def __init__(self, packed_model: PackedModel, max_num_batched_tokens: int = 2048, rows: Rows | None = None) -> None:
        """`rows` of a shared pass; None finds out which this base needs for its jobs not to change each other.

        Raises BaseUnusable for a model whose logits are more than its head applied to its last hidden states.
        """
        self._body = Body(packed_model)
        self.most_tokens = max_num_batched_tokens
        """Of a micro-batch, and of a pass."""
        self._rows = rows or exact_rows(packed_model, max_num_batched_tokens)
        self._rotation = TokenRotation()
        self._suspects: list[TrainingRun] = []

    def step(self, runs: Sequence[TrainingRun]) -> list[Outcome]:
        """One optimizer step of every run, in their order. A run that fails gives its error and leaves the others alone."""
        ended: dict[TrainingRun, Outcome] = {}
        while waiting := [run for run in runs if run not in ended]:
            ended |= self.advance(waiting)
        return [ended[run] for run in runs]

    def advance(self, runs: Sequence[TrainingRun]) -> dict[TrainingRun, Outcome]:
        """One pass, over pieces of these runs. Gives the runs whose step it ended, well or badly; the others' steps are in progress."""
        chosen = self._choose(runs)
        for run in chosen:
            try:
                self._refer(run)
            except Exception as error:  # of torch, or a kernel that does not compile: no kind of it may end the loop of passes
                return {run: self._failed(run, error)}
        try:
            losses = self._learn([(run, run.piece) for run in chosen])
        except Exception as error:
            return self._blamed(chosen, error)
        taken = {run: self._take(run, loss) for run, loss in zip(chosen, losses, strict=True)}
        return {run: outcome for run, outcome in taken.items() if outcome is not None}

    def prove(self) -> None:
        """Raises DeviceLost when the base alone cannot be computed any more: what failed then was no job's fault."""
        self._body.prove()

    def leave(self, run: TrainingRun) -> None:
        """The run makes no more steps here."""
        self._rotation.forget(run.job.job_id)
        self._clear(run)

    def _choose(self, runs: Sequence[TrainingRun]) -> list[TrainingRun]:
        """Whose pieces go into the next pass. Who was in a pass that failed goes alone until its step is over."""
        if alone := [run for run in self._suspects if run in runs]:
            return alone[:1]
        offers = [Offer(run.job.tenant, run.job.job_id, run.piece.tokens) for run in runs]
        return [runs[place] for place in self._rotation.choose(offers, self._rows.most)]

    def _take(self, run: TrainingRun, loss: float) -> Outcome | None:
        try:
            outcome: Outcome | None = run.take(loss)
        except TrainingDiverged as error:
            outcome = error
        except Exception as error:
            outcome = self._failed(run, error)
        if outcome is not None:
            self._clear(run)
        return outcome

    def _blamed(self, runs: Sequence[TrainingRun], error: Exception) -> dict[TrainingRun, Outcome]:
        """A pass failed. Alone, a run is at fault; in company, all begin their steps again, one by one, in the same bits."""
        if len(runs) == 1:
            return {runs[0]: self._failed(runs[0], error)}
        log.warning("a pass of %d jobs failed, each goes alone now: %s", len(runs), error)
        for run in runs:
            run.restart()
        self._suspects += [run for run in runs if run not in self._suspects]
        return {}

    def _failed(self, run: TrainingRun, error: Exception) -> EngineFailed:
        log.error("job %s failed in torch", run.job.job_id, exc_info=error)
        self._clear(run)
        run.restart()
        return EngineFailed(f"job {run.job.job_id} failed in torch at step {run.step + 1}: {type(error).__name__}: {error}")

    def _clear(self, run: TrainingRun) -> None:
        if run in self._suspects:
            self._suspects.remove(run)

    def _refer(self, run: TrainingRun) -> None:
        """What DPO compares the next piece with, where it is not known yet: each pair by itself, so that it depends on nothing else."""
        pairs = [one for one in run.piece.examples if isinstance(one, Preference)] if run.method == "dpo" else []
        for pair in pairs:
            if pair not in run.references:
                run.references[pair] = self._body.summed(pair, run.start, self._rows.least)

    def _learn(self, pieces: Sequence[tuple[TrainingRun, MicroBatch]]) -> list[float]:
        """Forward and backward of one pass; each run's gradients grow by its piece. Gives the pieces' losses."""
        pass_, shares = packed(pieces, self._body.device, self._rows.least)
        hidden = self._body.hidden(pass_)
        gradient = torch.zeros_like(hidden)
        losses = [self._lose(pass_, share, hidden.detach(), gradient) for share in shares]
        hidden.backward(gradient)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return losses

    def _lose(self, pass_: Pass, share: Share, hidden: Tensor, gradient: Tensor) -> float:
        rows = torch.tensor(share.rows, device=hidden.device)

        def head(chunk: Tensor, part: slice) -> Tensor:
            return self._body.head(replace(pass_, selected=share.rows[part], scratch={}), chunk)

        total, gradient[rows] = chunked_loss(hidden[rows], head, share.targets, share.objective, scale=share.run.scale.value)
        return float(total)
