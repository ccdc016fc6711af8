"""`mint-stream topics`: what plan says, apply does; docs are fresh, or the stale files are named."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from typer.testing import Result

from mint_stream.bus.connection import Connection
from mint_stream.contracts import load_topics
from tests.provisioned import PARTITIONS

Command = Callable[..., Awaitable[Result]]

TOPICS = load_topics()


@pytest.fixture
def command(run, connection: Connection, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`await command("plan")` is `mint-stream topics plan` for a pool that only this test has."""
    monkeypatch.setenv("MINT_PARTITIONS", str(PARTITIONS))
    monkeypatch.setenv("MINT_POOL", topic_prefix)
    return lambda *arguments: asyncio.to_thread(run, "topics", *arguments, "--bootstrap", connection.bootstrap_servers)


def names_of(pool: str) -> set[str]:
    """Every topic that the pool needs for itself, dead letters among them."""
    own = [topic for topic in TOPICS.values() if "<pool>" in topic.name_pattern]
    return {topic.name(pool) for topic in own} | {topic.dead_letter_name(pool) for topic in own if topic.dead_letter}


@pytest.mark.kafka
async def test_plan_fails_until_apply_has_done_what_it_says_and_apply_again_does_nothing(command: Command, topic_prefix: str):
    planned = await command("plan", "--json")
    assert planned.exit_code == 1
    changes = {change["topic"]: change for change in json.loads(planned.stdout)}
    assert names_of(topic_prefix) <= changes.keys()
    assert {changes[name]["action"] for name in names_of(topic_prefix)} == {"create"}
    done = await command("apply", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout) == json.loads(planned.stdout)
    after = await command("plan")
    assert (after.exit_code, after.stdout) == (0, "nothing to do\n")
    assert (await command("apply")).stdout == "nothing to do\n"
    assert json.loads((await command("plan", "--json")).stdout) == []


@pytest.mark.kafka
async def test_people_read_the_plan_as_a_table_of_action_topic_and_detail(command: Command, topic_prefix: str):
    lines = (await command("plan")).stdout.splitlines()
    assert lines[0].split() == ["action", "topic", "detail"]
    row = next(line for line in lines if f"inference-requests-{topic_prefix} " in line)
    assert row.split(maxsplit=2) == ["create", f"inference-requests-{topic_prefix}", f"{PARTITIONS} partitions, delete, 1 replicas"]


@pytest.mark.kafka
async def test_another_partition_count_is_a_migration_that_apply_refuses(
    command: Command, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
):
    await command("apply")
    monkeypatch.setenv("MINT_PARTITIONS", str(PARTITIONS + 1))
    planned = await command("plan", "--json")
    migrations = {change["topic"] for change in json.loads(planned.stdout) if change["action"] == "migrate"}
    assert planned.exit_code == 1 and f"inference-requests-{topic_prefix}" in migrations
    refused = await command("apply")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error topic-mismatch: ") and "migration" in refused.stderr and "topics plan" in refused.stderr


@pytest.mark.kafka
async def test_the_pool_of_the_command_line_goes_before_that_of_the_environment(command: Command, topic_prefix: str):
    other = f"{topic_prefix}b"
    planned = {change["topic"] for change in json.loads((await command("plan", "--pool", other, "--json")).stdout)}
    assert names_of(other) <= planned and not planned & names_of(topic_prefix)


@pytest.mark.parametrize("asked", ["plan", "apply"])
def test_a_cluster_that_does_not_answer_is_one_line(run, asked: str):
    refused = run("topics", asked, "--bootstrap", "127.0.0.1:9")
    assert refused.exit_code == 1 and refused.stderr.startswith("error bus-unavailable: ") and "127.0.0.1:9" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_the_committed_documentation_is_what_would_be_generated(run):
    shown = run("topics", "docs", "--check")
    assert (shown.exit_code, shown.stdout.strip()) == (0, "all files are up to date")
    assert json.loads(run("topics", "docs", "--check", "--json").stdout) == {"stale": []}


def test_writing_fresh_documentation_writes_nothing(run):
    assert json.loads(run("topics", "docs", "--json").stdout) == {"written": []}
