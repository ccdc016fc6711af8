"""The evaluator: takes each open trial of its partitions to a verdict, and tells the registrar.

    heads with a trial ─► ours? ─► gate: dataset ─► both revisions asked ─► graded ─► judged ─► command ─► answered
                                  canary: fleet's counts (and scores) ─► judged again and again ─► command ─► answered

It remembers nothing: where a trial stands is in the adapter's head, what was counted is in `worker-status`. Whoever is killed here is
followed by somebody who begins the phase again, and the registrar carries out one verdict a phase, whoever sends it.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mint_stream.cache import Backoff
from mint_stream.errors import MissingExtra, Reject, Retry
from mint_stream.messages.adapters import CommandRejectedEvent
from mint_stream.messages.gates import CanaryTerms, Judge, Verdict
from mint_stream.metrics import Metrics
from mint_stream.promotion import canary, gate
from mint_stream.promotion.gate import Scores
from mint_stream.promotion.verdict import Judgement
from mint_stream.workers.canary_counts import CanaryCounts
from mint_stream.workers.clock import now_ms
from mint_stream.workers.commands import Commands
from mint_stream.workers.crew import Crew
from mint_stream.workers.measuring import Measuring
from mint_stream.workers.open_trials import OpenTrial, OpenTrials, TrialKey

log = logging.getLogger(__name__)

After = Callable[[str, str], None]
"""Called with the name of an effect once it is there (begun, measured, judged, answered), and the adapter on trial."""

_REASON_CHARACTERS = 1000
_AN_HOUR = Backoff(attempts=70, first_s=2.0, longest_s=60.0)


@dataclass(frozen=True)
class Patience:
    """How often one looks, and how often one tries again."""

    look_s: float = 1.0
    """A canary is judged whenever a worker says something, and at least this often."""
    retries: Backoff = _AN_HOUR
    """How long something outside may fail before the trial is given up."""


class Evaluator:
    """Holds every open trial that is ours in a task of its own; `look` is called whenever there may be others."""

    def __init__(
        self, measuring: Measuring, counts: CanaryCounts, commands: Commands, metrics: Metrics, after: After, patience: Patience
    ) -> None:
        self._measuring = measuring
        self._counts = counts
        self._commands = commands
        self._metrics = metrics
        self._after = after
        self._patience = patience
        self._held: dict[TrialKey, asyncio.Task[None]] = {}
        self._crew = Crew()
        self._news = asyncio.Event()
        self._draining = asyncio.Event()

    @property
    def held(self) -> int:
        """Trials that are being held now."""
        return sum(not task.done() for task in self._held.values())

    def look(self) -> None:
        """Trials or partitions changed."""
        self._news.set()

    async def run(self, trials: OpenTrials, owned: Callable[[], frozenset[int]]) -> None:
        """Hold trials until drained. Raises what a person has to see."""
        await self._crew.run(self._follow(trials, owned))

    async def drain(self) -> None:
        """Let go of every trial: its next holder begins its phase again."""
        self._draining.set()
        self._news.set()
        self._keep({})
        self._commands.abandon()
        await self._crew.finish()

    async def _follow(self, trials: OpenTrials, owned: Callable[[], frozenset[int]]) -> None:
        while not self._draining.is_set():
            self._news.clear()
            wanted = trials.within(owned())
            self._keep(wanted)
            for key, found in wanted.items():
                if key not in self._held:
                    self._held[key] = self._crew.spawn(self._hold(found))
            await self._news.wait()

    def _keep(self, wanted: Mapping[TrialKey, OpenTrial]) -> None:
        """Let go of what is not wanted any more. A trial that was held to its verdict is not begun again while it stands."""
        for key in [key for key in self._held if key not in wanted]:
            self._held.pop(key).cancel()
            self._counts.forget(key[0])

    async def _hold(self, of: OpenTrial) -> None:
        """One phase of one trial, to the registrar's answer."""
        log.info("trial %s of %s@%d: %s", of.trial.trial_id, of.adapter_id, of.trial.number, of.trial.phase)
        self._after("begun", of.adapter_id)
        try:
            verdict, judged = await self._verdict(of)
        except (Reject, MissingExtra) as error:
            verdict, judged = "give-up", Judgement("failed", f"{error.code}: {error}", {})
        self._after("measured", of.adapter_id)
        await self._tell(of, verdict, judged)

    async def _verdict(self, of: OpenTrial) -> tuple[Verdict, Judgement]:
        for failed in range(1, self._patience.retries.attempts + 1):
            try:
                return await (self._at_gate(of) if of.trial.phase == "gate" else self._in_canary(of))
            except Retry as error:
                last = error
                log.warning("trial %s tries again: %s", of.trial.trial_id, error)
                await asyncio.sleep(self._patience.retries.delay_s(failed, random.random()))
        return "give-up", Judgement("failed", f"{last.code}: {last}", {})

    async def _at_gate(self, of: OpenTrial) -> tuple[Verdict, Judgement]:
        judged = gate.judge(of.gate, await self._measuring.scores(of, of.gate.dataset_uri, "gate"))
        if judged.outcome == "failed":
            return "reject", judged
        return ("promote" if of.gate.canary is None or of.production is None else "start-canary"), judged

    async def _in_canary(self, of: OpenTrial) -> tuple[Verdict, Judgement]:
        terms = of.gate.canary or CanaryTerms()  # the rule is the trial's: without one there would be no canary phase
        scoring = asyncio.create_task(self._scores(of, terms))
        try:
            while True:
                judged = canary.judge(of.gate, terms, self._seen(of, scoring))
                if judged.outcome != "undecided":
                    return ("promote" if judged.outcome == "passed" else "roll-back"), judged
                await self._counts.moved(self._patience.look_s)
        finally:
            scoring.cancel()
            await asyncio.gather(scoring, return_exceptions=True)

    async def _scores(self, of: OpenTrial, terms: CanaryTerms) -> Scores | None:
        return None if terms.dataset_uri is None else await self._measuring.scores(of, terms.dataset_uri, "canary")

    def _seen(self, of: OpenTrial, scoring: "asyncio.Task[Scores | None]") -> canary.Seen:
        """Raises what the scoring raised."""
        ours, productions = self._counts.of(of.trial.trial_id)
        seconds = max(0.0, (now_ms() - of.trial.since_ms) / 1000)
        return canary.Seen(ours, productions, seconds, scoring.result() if scoring.done() else None)

    async def _tell(self, of: OpenTrial, verdict: Verdict, judged: Judgement) -> None:
        """Send the verdict. Two evaluators that believe a trial theirs send one command: the registrar carries out the first."""
        command = Judge(
            command_id=f"judge/{of.trial.phase}/{of.name}",
            adapter_id=of.adapter_id,
            issued_at_ms=now_ms(),
            trial_id=of.trial.trial_id,
            phase=of.trial.phase,
            verdict=verdict,
            production=of.production if of.trial.phase == "gate" else None,
            reason=judged.reason[:_REASON_CHARACTERS],
            figures=dict(judged.figures),
        )
        sent = await self._commands.send(command)
        self._after("judged", of.adapter_id)
        answer = await sent.answer()
        self._after("answered", of.adapter_id)
        refused = answer.reason if isinstance(answer, CommandRejectedEvent) else None
        self._metrics.verdicts_total.labels("refused" if refused else verdict).inc()
        log.info("%s@%d %s: %s", of.adapter_id, of.trial.number, verdict, refused or judged.reason)
