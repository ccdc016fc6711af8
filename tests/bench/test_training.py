"""The training benchmark runs, says where, and refuses wrong results."""

from pathlib import Path

import pytest
import torch

from mint_stream.bench import training
from mint_stream.bench.training_jobs import Load
from mint_stream.bench.wrong import WrongResult
from tests.factories import tiny_base

SMALL = Load(jobs=2, steps=3, tokens=12, rank=2, repeats=2, curve=(8, 16), curve_steps=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"), hidden_size=64, intermediate_size=128)


def test_it_reports_ratios_isolation_memory_machine_and_versions(base: Path) -> None:
    report = training.run(base, SMALL)
    seconds, ratios = report["seconds"], report["ratios"]
    assert ratios["vs_own_sequential"] == pytest.approx(seconds["own_sequential"]["median"] / seconds["together"]["median"])
    assert ratios["vs_peft_sequential"] == pytest.approx(seconds["peft_sequential"] / seconds["together"]["median"])
    assert report["peft_process_s"]["start_up"]["median"] > 0 and set(report["curve_vs_own_sequential"]) == {"8", "16"}
    assert report["jobs"] == 2 and report["isolation_bitwise"] is True
    memory = report["memory_bytes"]
    assert report["resident_bytes"] == memory["base"] + memory["states"] and memory["states"] > 0
    assert report["machine"]["cores"] >= 1 and report["versions"]["torch"] == torch.__version__.split("+")[0]


def test_jobs_that_do_not_learn_what_pefts_learn_get_no_number(base: Path) -> None:
    scene = training.Scene.of(base, SMALL)
    peft = training.peft_processes(scene.resident, base, SMALL)
    scene.check(SMALL, peft)
    with pytest.raises(WrongResult, match="job 1 ends at loss"):
        scene.check(SMALL, [peft[0], peft[1] | {"loss": 1.2 * peft[1]["loss"]}])


def test_states_are_what_training_owns(base: Path) -> None:
    scene = training.Scene.of(base, SMALL)
    run = training.fresh_run(scene.resident, SMALL, 0, 8)
    scene.shared.step([run])
    held = [run.adapter.masters, run.adapter.gradients, *(one for name, one in run.optimizer.moments().items() if name != "step")]
    counted = training.STATE_BYTES * run.weights().parameters
    assert sum(one.numel() * one.element_size() for one in held) == counted
