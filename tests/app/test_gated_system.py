"""The whole gate with a real model: real processes of every role, and the real engine on a tiny base."""

import json
from pathlib import Path
from uuid import uuid4

import pytest

from mint_stream.app.importing import import_adapter
from mint_stream.bus.connection import Connection
from mint_stream.client import Client
from mint_stream.messages.adapters import AdapterEvent
from mint_stream.messages.gates import CanaryTerms, GateTerms
from mint_stream.messages.inference import Sampling
from mint_stream.settings import Settings
from tests.app.test_system import running, settings_for, write_adapter

pytestmark = [pytest.mark.kafka, pytest.mark.long]

QUESTIONS = 40
SAMPLING = Sampling(max_tokens=6)
CANARY = CanaryTerms(share_basis_points=5000, min_requests=10, max_error_rate=0.2, max_latency_ratio=1000)


def write_items(path: Path, answers: dict[str, str]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in answers.items()))
    return path.as_uri()


async def verdict_on(client: Client, settings: Settings, name: str, adapter: str, phase: str) -> AdapterEvent:
    """Import one more revision and ask for production until the last verdict on it is there: at the gate, or in the canary."""
    async with client.revisions(name) as events:
        announced = await import_adapter(client, settings, name, adapter)
        number = getattr(announced, "number", None)
        async for event in events:
            if event.type == "candidate-judged" and event.number == number:
                if event.phase == phase:
                    return event
                for _ in range(60):
                    await client.generate("hello", name, sampling=SAMPLING)
    raise AssertionError("the events ended")


@pytest.mark.timeout(300)
async def test_good_bad_and_good_but_for_its_canary(connection: Connection, tmp_path: Path) -> None:
    """Production's own answers are the right ones. The same weights announced again are as good; others are not."""
    settings, name = settings_for(connection, tmp_path), f"gated-{uuid4().hex[:8]}"
    same, other = write_adapter(tmp_path, "same", seed=1), write_adapter(tmp_path, "other", seed=2)
    async with running(settings, connection, register=1, serve=1, evaluate=1), Client(settings) as client:
        await import_adapter(client, settings, name, same)
        asked = {f"question {number}": "" for number in range(QUESTIONS)}
        for prompt in asked:
            asked[prompt] = str((await client.generate(prompt, name, sampling=SAMPLING)).text)
        items, wrong = write_items(tmp_path / "items.jsonl", asked), write_items(tmp_path / "wrong.jsonl", dict.fromkeys(asked, "never"))
        gate = GateTerms(
            dataset_uri=items, grader="exact-match", floor=0.8, max_regression=0.3, max_tokens=SAMPLING.max_tokens, canary=CANARY
        )
        await client.set_rule(name, "gated", gate)

        good = await verdict_on(client, settings, name, same, "canary")
        assert (good.verdict, good.number, good.figures["errors"]) == ("promote", 2, 0), good.reason
        assert (await client.adapter(name)).production == 2

        bad = await verdict_on(client, settings, name, other, "gate")
        assert bad.verdict == "reject" and bad.figures["score"] < 0.8 == bad.figures["floor"], bad.reason

        strict = gate.model_copy(update={"canary": CANARY.model_copy(update={"dataset_uri": wrong, "min_requests": 1000})})
        await client.set_rule(name, "gated", strict)
        rolled_back = await verdict_on(client, settings, name, same, "canary")
        assert (rolled_back.verdict, rolled_back.figures["canary_score"]) == ("roll-back", 0.0), rolled_back.reason
        view = await client.adapter(name)
        assert (view.production, view.head.canary, view.head.trial) == (2, None, None)
