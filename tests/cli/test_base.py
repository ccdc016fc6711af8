"""`mint-stream base`: where a base lies and what it is, or what to do when it is not here."""

import json
from pathlib import Path

import pytest

from mint_stream.model.base import load_base
from mint_stream.model.digest import base_digest
from tests.factories import VOCABULARY, tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "Tiny")


def test_show_says_what_a_worker_would_find(run, base: Path):
    shown = run("base", "show", base, "--json")
    assert shown.exit_code == 0, shown.output
    facts, loaded = json.loads(shown.stdout), load_base(base)
    assert facts["digest"] == loaded.digest == base_digest(base)
    assert (facts["path"], facts["pool"], facts["architecture"]) == (str(base), "tiny", loaded.architecture)
    assert (facts["context_tokens"], facts["vocabulary_tokens"]) == (loaded.context_tokens, VOCABULARY)
    assert facts["weights_bytes"] == sum(file.stat().st_size for file in base.glob("*.safetensors")) > 0


def test_show_for_people_is_a_line_a_fact(run, base: Path):
    lines = dict(line.split(maxsplit=1) for line in run("base", "show", base).stdout.splitlines())
    assert lines["digest"] == base_digest(base) and lines["pool"] == "tiny" and lines["layers"] == "2"


def test_the_base_of_the_environment_is_shown_without_an_argument(run, base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINT_BASE", str(base))
    assert json.loads(run("base", "show", "--json").stdout)["path"] == str(base)


def test_pulling_a_directory_is_only_looking_it_up(run, base: Path):
    assert run("base", "pull", base).stdout == f"{base}\n"
    assert json.loads(run("base", "pull", base, "--json").stdout) == {"base": str(base), "path": str(base)}


@pytest.mark.parametrize("asked", ["show", "pull"])
def test_a_base_that_is_nowhere_stops_the_command_with_what_to_do(run, asked: str, tmp_path: Path):
    refused = run("base", asked, tmp_path / "nowhere")
    assert refused.exit_code == 2 and refused.stderr.startswith("error base-unusable: ") and "nowhere" in refused.stderr


def test_the_built_in_base_before_it_was_pulled_says_how_to_pull_it(run):
    refused = run("base", "show", "smollm2-135m")
    assert refused.exit_code == 2 and "mint-stream base pull smollm2-135m" in refused.stderr


def test_a_directory_that_is_no_model_is_named(run, tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    refused = run("base", "show", tmp_path)
    assert refused.exit_code == 2 and refused.stderr.startswith("error base-unusable: ") and str(tmp_path) in refused.stderr


@pytest.mark.parametrize("config", ["{", "[1]", "7", ""])
def test_a_config_that_is_no_json_object_is_a_base_that_cannot_be_used(run, tmp_path: Path, config: str):
    whole = tiny_base(tmp_path / "base")
    (whole / "config.json").write_text(config)
    refused = run("base", "show", whole)
    assert refused.exit_code == 2 and refused.stderr.startswith("error base-unusable: ") and refused.stderr.count("\n") == 1
