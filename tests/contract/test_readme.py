"""What the README shows is what there is: its records decode, its commands exist, its files are there, its topics are the real ones."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from mint_stream import contracts
from mint_stream.bench.report import BEGIN, END
from mint_stream.cli.main import app
from mint_stream.messages.inference import InferenceRequest
from mint_stream.messages.training import TrainingJob
from mint_stream.settings import BUILTIN_BASE, Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
WRITTEN = re.sub(f"{BEGIN}.*{END}", "", README, flags=re.DOTALL)
"""Without what was printed by a run."""
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", WRITTEN, flags=re.DOTALL)
COMMANDS = sorted({line.split(" #")[0].strip() for _, text in BLOCKS for line in text.splitlines() if line.startswith("mint-stream ")})


def objects(text: str) -> list[dict[str, object]]:
    """Every JSON object in the text, Java's escaped quotes included."""
    decoder, found, at = json.JSONDecoder(), [], 0
    text = text.replace('\\"', '"')
    while (at := text.find('{"', at)) >= 0:
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    return found


def test_the_requests_it_shows_are_requests() -> None:
    shown = [one for _, text in BLOCKS for one in objects(text) if "request_id" in one]
    assert len(shown) >= 2
    for one in shown:
        InferenceRequest.decode(json.dumps(one).encode())


def test_the_job_it_shows_is_a_job() -> None:
    [shown] = [one for language, text in BLOCKS if language == "json" for one in objects(text)]
    job = TrainingJob.decode(json.dumps(shown).encode())
    assert job.promotion == "manual"


def test_the_topics_it_names_exist() -> None:
    stems = r"(?:inference-(?:requests|results|replies)|training-jobs|adapter-(?:commands|revisions|events))"
    named = set(re.findall(rf"\b{stems}(?:-{BUILTIN_BASE}|-<pool>)?", README))
    real = {topic.name_pattern.removesuffix("-<pool>") for topic in contracts.load_topics().values()}
    assert named
    assert {name.removesuffix("-<pool>").removesuffix(f"-{BUILTIN_BASE}") for name in named} <= real


@pytest.mark.parametrize("line", COMMANDS)
def test_its_commands_parse(line: str) -> None:
    """Every word after `mint-stream` is a command or an option that exists."""
    for part in re.split(r"&&|;|&(?!&)|\|", line):
        words = [word for word in shlex.split(part) if word]
        if words and words[0] == "mint-stream":
            parse(typer.main.get_command(app), words[1:])


def parse(command: click.Command, words: list[str]) -> None:
    while hasattr(command, "commands"):
        assert words, f"{command.name} needs a command"
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words), resilient_parsing=False)


def test_the_variables_it_names_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = re.findall(r"^export (MINT_[A-Z_]+)=(\S+)", README, flags=re.MULTILINE)
    assert {name for name, _ in exported} == {"MINT_KAFKA__BOOTSTRAP_SERVERS", "MINT_STORE__URI", "MINT_BASE"}
    for name, value in exported:
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    assert settings.store_uri == "s3://my-bucket/mint"
    assert settings.base == "/models/my-base"


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#][^)]*)\)", README):
        assert (ROOT / target).exists(), target


def test_its_tree_is_the_tree() -> None:
    tree = README[README.index("## Where everything is") :]
    folders = re.findall(r"^  (\w+)/ ", tree, flags=re.MULTILINE)
    real = {path.name for path in (ROOT / "mint_stream").iterdir() if (path / "__init__.py").exists()}
    assert set(folders) == real


def test_the_test_files_it_points_to_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", README)
    assert named
    assert all((ROOT / name).exists() for name in named)
