"""The README shows what was committed as measured, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from mint_stream.bench.handoff import STAGES
from mint_stream.bench.report import BEGIN, END, RESULTS, measured, with_figures

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_shows_the_committed_results() -> None:
    assert with_figures(README.read_text(), measured()) == README.read_text(), "run `mint-stream bench report`"


def test_every_committed_result_names_its_machine() -> None:
    committed = sorted(RESULTS.glob("*.json"))
    assert committed
    for path in committed:
        machine = json.loads(path.read_text())["machine"]
        assert machine["processor"]
        assert machine["cores"]


def test_figures_replace_what_stood_between_the_markers() -> None:
    readme = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = with_figures(readme, "new")
    assert once == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert with_figures(once, "new") == once


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="has no"):
        with_figures("no markers", "new")


def test_results_that_were_never_committed_are_left_out(tmp_path: Path) -> None:
    assert measured(tmp_path) == ""


SPREAD = {"p50": 100.0, "p99": 200.0, "min": 90.0, "max": 210.0}
RATES = {"median": 1000.0, "min": 900.0, "max": 1100.0}
MACHINE = {"cores": 2, "processor": "P", "units": "u"}
SYSTEM: dict[str, dict[str, Any]] = {
    "handoff.json": {
        "workload": {"rank": 8, "prompt_tokens": 64, "dtype": "bfloat16"},
        "handoff_ms": SPREAD,
        "prefill_ms": SPREAD,
        "baseline_cold_ms": {**SPREAD, "n": 5},
        "baseline_warm_ms": {**SPREAD, "n": 5},
        "ratios": {"vs_cold": 21.04, "vs_warm": 3.0},
        "stages_ms": dict.fromkeys(STAGES, 7.0),
    },
    "rollback.json": {"workload": {"every_ms": 20.0}, "effect_ms": SPREAD, "in_force_ms": SPREAD, "event_ms": SPREAD, "request_ms": SPREAD},
    "routing.json": {
        "workload": {"adapters": 4, "prompt_tokens": 64, "new_tokens": 16, "dtype": "bfloat16", "requests": 12},
        "served_ms": SPREAD,
        "direct_ms": SPREAD,
        "together_s": RATES,
        "full_checkpoint_server_s": RATES,
        "share_of_latency": 0.042,
        "ratio_vs_full_checkpoint_server": 9.04,
    },
    "rl.json": {
        "workload": {"steps": 20, "questions": 8, "group_size": 8, "loss": "ppo", "rank": 4, "grader": "exact-match"},
        "score_before": 0.5,
        "score_after": 0.875,
        "gain": 0.375,
        "gain_interval_95": [0.25, 0.5],
        "rollouts": {"graded": 1279, "dropped": 1},
        "staleness": [0, 1, 1],
        "seconds": {"warm_up": 60.0, "rl": 240.0, "total": 333.0},
    },
    "bus.json": {
        "workload": {"requests": 100, "backlog": 100_000},
        "round_trip_ms": {"ours": SPREAD, "raw": SPREAD},
        "sustained_per_s": {"ours": RATES, "raw": RATES},
        "backlog": {"ours": {"worker_mib": {"first": 300.0, "last": 301.0, "most": 302.0}}},
        "latency_ratio": {"median": 1.31},
        "sustained_share": 0.6,
    },
}


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("handoff.json", ("21.0x", "3.0x", "first text at the client | 7")),
        ("rollback.json", ("every 20 ms", "| 100 | 200 | 90 to 210 |", "no request sent is answered by the other")),
        ("routing.json", ("4.2%", "9.0x", "1000.0 s against 1000.0 s")),
        (
            "rl.json",
            ("| 50.0% |", "| 87.5% |", "+37.5% (+25.0% to +50.0%)", "1279 answers", "1 dropped", "more than 1 behind", "all of it 333 s"),
        ),
        ("bus.json", ("1.31x", "60%", "100,000", "300 MiB", "302 at most")),
    ],
)
def test_a_result_of_the_whole_system_is_a_block_with_its_figures_and_its_machine(
    name: str, figures: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps({**SYSTEM[name], "n": 7, "machine": MACHINE}))
    block = measured(tmp_path)
    assert block.startswith(f"`mint-stream bench {name.removesuffix('.json')}`") and "n = 7" in block
    for figure in (*figures, "2 cores of P (u)"):
        assert figure in block, figure
