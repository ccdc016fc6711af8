"""An evaluator that is killed, or that was silent too long: somebody goes on, and each phase has one verdict."""

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mint_stream.app.environment import environment_of
from mint_stream.bus.connection import Connection
from mint_stream.messages.adapters import AdapterEvent
from mint_stream.messages.gates import CanaryTerms, Judge
from tests.child_process import module, said
from tests.evaluation_ground import Evaluation, right

pytestmark = [pytest.mark.kafka, pytest.mark.long]

CANARY = CanaryTerms(share_basis_points=5000, min_requests=10, max_error_rate=0.2)
EFFECTS = ("begun", "measured", "judged")
"""What is said once the verdict lies in the log, `answered`, nobody waits for any more: the next one finds the next phase."""


@pytest.fixture
async def ground(connection: Connection, tmp_path: Path) -> AsyncIterator[Evaluation]:
    async with Evaluation.on(connection, tmp_path) as ground:
        yield ground


@asynccontextmanager
async def evaluator(ground: Evaluation, effect: str = "", how: str = "SIGKILL") -> AsyncIterator[Process]:
    environment = {**os.environ, **environment_of(ground.settings)}
    async with module("tests.app.evaluator_process", effect, how, ground.name, environment=environment) as process:
        yield process


def phases(ground: Evaluation, number: int = 2) -> list[tuple[str, str]]:
    return [(one.phase, one.verdict) for one in ground.events if one.type == "candidate-judged" and one.number == number]


@pytest.mark.timeout(240)
async def test_killed_after_every_effect_the_next_one_goes_on_and_each_phase_has_one_verdict(ground: Evaluation) -> None:
    """At the gate, and again in the canary: six evaluators die, each right after the effect of its turn."""
    await ground.gate(CANARY)
    ground.skills[2] = right(9)
    await ground.publish()
    for effect in EFFECTS:
        async with evaluator(ground, effect) as process:
            await process.wait()
            assert process.returncode == -signal.SIGKILL
        if effect == "measured":
            assert phases(ground) == [], "nothing was decided by those who died before they said anything"
    gate = await ground.judged(2, "gate")
    assert gate.verdict == "start-canary"

    def over(event: AdapterEvent) -> bool:
        return event.type == "candidate-judged" and event.phase == "canary"

    asking = asyncio.create_task(ground.traffic(over))
    for effect in EFFECTS:
        async with evaluator(ground, effect) as process:
            await process.wait()
    async with ground.evaluator():
        await asking
    assert phases(ground) == [("gate", "start-canary"), ("canary", "promote")]
    assert (await ground.view()).head.aliases["production"] == 2


@pytest.mark.timeout(180)
async def test_a_zombie_that_wakes_with_an_old_verdict_changes_nothing(ground: Evaluation) -> None:
    """Stopped with its verdict in hand; another judges, a newer revision becomes production; then it goes on, and judges the next."""
    await ground.gate()
    ground.skills = {2: right(9), 3: right(10), 4: right(2)}
    await ground.publish()
    trial = (await ground.view()).head.trial
    async with evaluator(ground, "measured", "SIGSTOP") as zombie:
        await said(zombie, "measured")
        async with ground.evaluator():  # its partitions come when the group has given the silent one up
            assert (await ground.judged(2, "gate")).verdict == "promote"
            await ground.publish()
            assert (await ground.judged(3, "gate")).verdict == "promote"
        zombie.send_signal(signal.SIGCONT)
        await ground.publish()
        assert (await ground.judged(4, "gate")).verdict == "reject", "it is awake: what it had to say of 2 was said before this"
    late = Judge(**stamp(ground, "late"), trial_id=trial.trial_id, phase="gate", verdict="promote", production=1, reason="slow")
    await ground.send(late)
    refused = await ground.heard(lambda event: event.command_id == "late")
    assert refused.type == "command-rejected" and "there is no trial" in refused.reason
    assert phases(ground) == [("gate", "promote")]
    assert (await ground.view()).head.aliases["production"] == 3


def stamp(ground: Evaluation, command_id: str) -> dict[str, Any]:
    return {"command_id": command_id, "adapter_id": ground.name, "issued_at_ms": 1}
