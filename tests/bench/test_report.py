"""The README shows what was committed as measured, and nothing else."""

import json
from pathlib import Path

import pytest

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
