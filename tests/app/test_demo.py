"""The demo's steps on a tiny random base: it cannot learn the task there, but every record has to go its way."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mint_stream.app.demo import Demo, DemoReport, DemoSize
from mint_stream.app.demo_adapters import APPRENTICE, STRANGERS
from mint_stream.bus.connection import Connection
from mint_stream.client import Client
from mint_stream.messages.training import TrainingEvent
from tests.app.test_system import running, settings_for

pytestmark = [pytest.mark.kafka, pytest.mark.long]


class Notes:
    """A Show that remembers."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.lines: list[str] = []
        self.states: list[str] = []

    def step(self, title: str) -> None:
        self.steps.append(title)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        assert all(len(row) == len(columns) for row in rows)

    def training(self, event: TrainingEvent) -> None:
        self.states.append(event.state)


@pytest.mark.timeout(240)
async def test_the_demo_loses_nothing_doubles_nothing_and_rolls_back_each_time_it_is_run(connection: Connection, tmp_path: Path) -> None:
    """One's own cluster remembers the last time."""
    settings = settings_for(connection, tmp_path)
    size = DemoSize(heldout=16, training=64, steps=5, batch_size=4, mixed_requests=20)
    async with running(settings, connection, register=1, serve=1, train=1):
        for untrained in (1, 3):
            notes = Notes()
            async with Client(settings) as client:
                report = await Demo(client, settings, notes, size, tmp_path / str(untrained)).run()
            check(report, notes)
            assert any("revision-announced" in line and f'"number":{untrained + 1}' in line for line in notes.lines)


def check(report: DemoReport, notes: Notes) -> None:
    assert (report.lost, report.duplicates_visible) == (0, 0)
    assert report.requests_sent == report.results_visible == 20 + 3 * 16 + 2
    assert report.accuracy_after_rollback == report.accuracy_before
    assert report.adapters_in_largest_batch >= min(3, len(STRANGERS))
    assert report.announce_to_first_token_ms > 0
    assert report.rollback_to_effect_ms > 0
    assert notes.states[0] == "queued"
    assert notes.states[-1] == "succeeded"
    assert any(f"of {APPRENTICE}, trained in the same passes" in line and "succeeded" in line for line in notes.lines)
    assert set(report.stage_seconds) == set(notes.steps)
