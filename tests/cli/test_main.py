"""The command line as a whole: quick to help, one line an error, exit codes that mean something."""

import json
import subprocess
import sys

import pytest

import mint_stream

HEAVY = ("torch", "transformers", "aiokafka", "peft", "triton", "fsspec", "faststream")
COMMANDS = ("up", "demo", "doctor", "serve", "train", "register", "generate", "adapters", "jobs", "base", "kafka", "topics", "bench")


def test_importing_the_package_and_the_command_line_imports_nothing_heavy():
    program = "import sys, json, mint_stream, mint_stream.cli.main; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout)
    assert [name for name in HEAVY if name in modules] == []


def test_the_client_needs_no_torch():
    program = (
        "import sys; from mint_stream import Client, Settings, TrainingJob; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout == "False False\n"


def test_every_public_name_is_there_and_no_other():
    assert "Client" in dir(mint_stream)
    assert all(getattr(mint_stream, name) is not None for name in dir(mint_stream))
    with pytest.raises(AttributeError, match="Cleint"):
        _ = mint_stream.Cleint


def test_help_names_every_command(run):
    shown = run("--help")
    assert shown.exit_code == 0
    assert [name for name in COMMANDS if name not in shown.output] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(run, name: str):
    shown = run(name, "--help")
    assert shown.exit_code == 0 and "Usage" in shown.output


def test_the_version_is_printed(run):
    assert run("--version").output.strip() == "0.1.0"


def test_a_rejected_input_is_one_line_and_exit_code_1(run):
    refused = run("generate")
    assert refused.exit_code == 1
    assert refused.stderr == "error invalid-request: give exactly one of --prompt, --chat, --messages; this command gives none\n"


def test_what_a_person_has_to_mend_is_exit_code_2(run, monkeypatch):
    monkeypatch.setenv("MINT_STOER__URI", "memory://")
    refused = run("adapters", "list")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error invalid-settings: MINT_STOER__URI")
    assert refused.stderr.count("\n") == 1


def test_debug_shows_where_an_error_came_from(run):
    assert "Traceback" in run("--debug", "generate").stderr
    assert "Traceback" not in run("generate").stderr


def test_no_broker_is_one_line(run):
    refused = run("adapters", "list", "--bootstrap", "127.0.0.1:9")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("error bus-unavailable: no Kafka broker answers at 127.0.0.1:9")


def test_a_job_that_contradicts_itself_is_refused_before_kafka_is_asked(run):
    refused = run("jobs", "submit", "a", "data.jsonl", "--steps", "5", "--warmup-steps", "5", "--bootstrap", "127.0.0.1:9")
    assert refused.exit_code == 1 and refused.stderr.startswith("error invalid-job: ") and "warmup_steps" in refused.stderr


def test_the_module_runs_as_a_program():
    shown = subprocess.run([sys.executable, "-m", "mint_stream.cli.main", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "0.1.0"
