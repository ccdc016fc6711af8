"""The reinforcement benchmark judges item by item, and refuses where there is nothing to learn or nothing was recorded."""

from contextlib import nullcontext
from pathlib import Path
from uuid import uuid4

import pytest

from mint_stream.bench.rl import Size, check_room, check_steps, paired_interval, run
from mint_stream.bench.rl_data import HELD_OUT, QUESTIONS, WARM_UP, write_data
from mint_stream.bench.wrong import WrongResult
from mint_stream.bus.connection import Connection
from mint_stream.messages.training import RolloutFigures, TrainingEvent
from mint_stream.promotion.items import read_items
from tests.fleets import fleet_settings


def test_an_interval_is_of_the_pairs_and_lies_about_their_mean() -> None:
    before = [0.0, 1.0] * 64
    assert paired_interval(before, before) == (0.0, 0.0)
    low, high = paired_interval(before, [1.0, 1.0] * 48 + [0.0, 1.0] * 16)
    assert 0.25 < low < 48 / 128 < high < 0.5
    low, high = paired_interval(before, [1.0, 0.0] * 64)
    assert low < 0 < high, "what one half gains the other loses"


@pytest.mark.parametrize(("score", "fits"), [(0.0, False), (0.5, True), (1.0, False)])
def test_a_policy_without_room_to_learn_is_not_measured(score: float, fits: bool) -> None:
    with nullcontext() if fits else pytest.raises(WrongResult, match="warm-up steps"):
        check_room([score] * 8, Size())


def event(step: int, staleness: int = 0) -> TrainingEvent:
    figures = RolloutFigures(number=1, staleness=staleness, graded=8, dropped=0, reward=0.5)
    fields = {"job_id": "j", "adapter_id": "a", "tenant": "t", "worker_id": "w", "at_ms": 1}
    return TrainingEvent(state="running", step=step, steps=2, rollouts=figures, **fields)


def test_every_step_was_told_once_and_from_answers_as_fresh_as_asked() -> None:
    size = Size(steps=2, max_staleness=1)
    check_steps([event(1), event(2, staleness=1)], size)
    for told in ([event(1)], [event(1), event(1), event(2)]):
        with pytest.raises(WrongResult, match="not once of each of 2"):
            check_steps(told, size)
    with pytest.raises(WrongResult, match=r"steps \[2\] learned from answers of revisions more than 1 behind"):
        check_steps([event(1), event(2, staleness=2)], size)


def test_no_command_is_in_two_of_the_files(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 32)
    asked, held_out = (read_items((tmp_path / "data" / name).read_bytes()) for name in (QUESTIONS, HELD_OUT))
    shown = (tmp_path / "data" / WARM_UP).read_text()
    assert held_out == data.heldout and len(held_out) == 32
    assert not {item.prompt for item in asked} & {item.prompt for item in held_out}
    assert not [item for item in (*asked, *held_out) if (item.prompt or "").splitlines()[1] in shown.replace("\\n", "\n").splitlines()]


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_policy_is_warmed_up_judged_trained_by_its_grades_and_judged_again(connection: Connection, tmp_path: Path) -> None:
    settings = await fleet_settings(connection, tmp_path)
    size = Size(heldout=8, warmup_steps=2, steps=3, questions=2, group_size=4, rank=2, room=(0, 1), adapter=f"a{uuid4().hex[:8]}")
    report = await run(settings, size)
    assert report["n"] == 8 and len(report["rewards"]) == 3 and report["staleness"] == [0, 1, 1]
    assert report["rollouts"] == {"graded": 24, "dropped": 0} and not report["improved"], "eight items say nothing"
    assert report["gain"] == pytest.approx(report["score_after"] - report["score_before"])
    assert report["gain_interval_95"][0] <= report["gain"] <= report["gain_interval_95"][1]
    assert set(report["seconds"]) == {"warm_up", "before", "rl", "after", "total"}
