"""Passes that all jobs share: each job asks for its next step, and whoever has asked when a pass begins may be in it."""

import asyncio

from mint_stream.errors import EngineFailed
from mint_stream.model.turns import Turns
from mint_stream.trainer.run import StepReport, TrainingRun
from mint_stream.trainer.trainer import Outcome, Trainer
from mint_stream.workers.effects import After
from mint_stream.workers.torch_thread import TorchThread


class PassLoop:
    """Makes passes on torch's thread for as long as any job waits for a step."""

    def __init__(self, thread: TorchThread, trainer: Trainer, after: After, turns: Turns | None = None) -> None:
        """`turns`: on a base that also serves."""
        self._turns = turns or Turns()
        self._thread = thread
        self._trainer = trainer
        self._after = after
        self._waiting: dict[TrainingRun, asyncio.Future[StepReport]] = {}
        self._going: asyncio.Task[None] | None = None

    async def step(self, run: TrainingRun) -> StepReport:
        """One optimizer step. Raises TrainingDiverged or EngineFailed, which are this run's alone."""
        self._waiting[run] = asyncio.get_running_loop().create_future()
        if self._going is None or self._going.done():
            self._going = asyncio.create_task(self._go())
        try:
            return await self._waiting[run]
        finally:
            del self._waiting[run]

    async def prove(self) -> None:
        """Raises DeviceLost when no job can be trained here any more."""
        await self._thread.run(self._trainer.prove)

    async def leave(self, run: TrainingRun) -> None:
        """The run makes no more steps here."""
        await self._thread.run(self._trainer.leave, run)

    async def _go(self) -> None:
        while self._waiting:
            for run, outcome in (await self._pass(tuple(self._waiting))).items():
                self._settle(run, outcome)
            self._after("passed")
            await asyncio.sleep(0)  # whose step has ended asks for the next one now, to be in the next pass

    async def _pass(self, runs: tuple[TrainingRun, ...]) -> dict[TrainingRun, Outcome]:
        try:
            return await self._thread.run(self._advance, runs)
        except EngineFailed as error:  # of nobody in particular: a run's own faults are outcomes
            return dict.fromkeys(runs, error)
        except Exception as error:  # or all jobs would wait for ever, with their hearts beating
            return dict.fromkeys(runs, EngineFailed(f"a pass failed: {type(error).__name__}: {error}"))

    def _advance(self, runs: tuple[TrainingRun, ...]) -> dict[TrainingRun, Outcome]:
        """On torch's thread, in our turn."""
        with self._turns.pass_():
            return self._trainer.advance(runs)

    def _settle(self, run: TrainingRun, outcome: Outcome) -> None:
        waiting = self._waiting.get(run)
        if waiting is None or waiting.done():
            return
        if isinstance(outcome, StepReport):
            waiting.set_result(outcome)
        else:
            waiting.set_exception(outcome)
