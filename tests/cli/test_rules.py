"""`adapters rules`: a gate is looked at before it is set."""

import asyncio
import json
from pathlib import Path

import pytest

from mint_stream.bus.connection import Connection
from tests.cli.conftest import Run
from tests.evaluation_ground import Evaluation


def items(path: Path, count: int = 128, answer: str = "a") -> Path:
    path.write_text("".join(json.dumps({"prompt": f"q{number}", "answer": answer}) + "\n" for number in range(count)))
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--floor", "1.5"], "floor"),
        (["--grader", "exactly"], "there is no grader 'exactly'"),
        (["--grader", "regex"], "no pattern"),
        (["--max-regression", "0.01"], "passes from"),
        (["--canary", "half"], "no share"),
        (["--canary", "5%", "--max-error-rate", "2"], "max_error_rate"),
        (["--canary", "5%", "--canary-dataset", "s3://elsewhere/x"], "not below a root"),
        (["manual"], "exclude each other"),
    ],
)
def test_a_gate_by_which_nobody_could_be_judged_is_refused_before_anything_is_sent(
    run: Run, tmp_path: Path, options: list[str], words: str
) -> None:
    """No broker listens there: what is refused is refused without one."""
    dataset = items(tmp_path / "items.jsonl", answer="(")
    shown = run("adapters", "rules", "a", "--gated", "--dataset", dataset, *options, "--bootstrap", "127.0.0.1:9")
    assert shown.exit_code != 0
    assert words in " ".join(shown.output.replace("│", " ").split())


def test_a_rule_has_to_be_named(run: Run) -> None:
    assert "name a rule" in run("adapters", "rules", "a", "--bootstrap", "127.0.0.1:9").output
    assert "no lines" in run("adapters", "rules", "a", "--dataset", "/dev/null", "--bootstrap", "127.0.0.1:9").output


@pytest.mark.kafka
async def test_a_gate_is_set_kept_and_shown(run: Run, connection: Connection, tmp_path: Path) -> None:
    async with Evaluation.on(connection, tmp_path) as ground:

        async def command(*arguments: object) -> str:
            shown = await asyncio.to_thread(run, "adapters", *arguments, "--bootstrap", connection.bootstrap_servers, "--pool", ground.name)
            assert shown.exit_code == 0, shown.output
            return shown.output

        dataset = items(tmp_path / "cli.jsonl")
        gate = ("--dataset", dataset, "--grader", "contains", "--floor", "0.5", "--canary", "2.5%", "--max-minutes", "10")
        told = json.loads(await command("rules", ground.name, "--gated", *gate, "--json"))
        assert (told["type"], told["rule"], told["gate"]["grader"], told["gate"]["floor"]) == ("rule-set", "gated", "contains", 0.5)
        assert (told["gate"]["canary"]["share_basis_points"], told["gate"]["canary"]["max_seconds"]) == (250, 600.0)
        assert told["gate"]["dataset_uri"].startswith("file://"), "the file was put into the store, where evaluators read it"
        await ground.publish()
        assert "on trial: 2 (gate)" in await command("show", ground.name)
        await command("rules", ground.name, "manual")
        kept = json.loads(await command("rules", ground.name, "--gated", "--json"))
        assert kept["gate"] == told["gate"]
