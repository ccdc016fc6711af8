"""`adapters show --at` and `--lineage` against a real registrar and its history."""

import json
from datetime import UTC, datetime

import pytest
import typer

from mint_stream.cli.moments import moment_ms
from mint_stream.client import Client
from tests.adapter_commands import manifest
from tests.cli.conftest import Command

pytestmark = pytest.mark.kafka

NOW_MS = 1_795_617_000_000


@pytest.mark.parametrize(("text", "before_s"), [("30s", 30), ("90m", 5400), ("2h", 7200), ("3d", 259_200), ("0s", 0)])
def test_so_long_ago(text: str, before_s: int) -> None:
    assert moment_ms(text, NOW_MS) == NOW_MS - before_s * 1000


def test_a_time_is_utc_unless_it_says_otherwise() -> None:
    assert moment_ms("2026-11-25T14:00", 0) == datetime(2026, 11, 25, 14, tzinfo=UTC).timestamp() * 1000
    assert moment_ms("2026-11-25T14:00+02:00", 0) == datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp() * 1000
    for wrong in ("", "yesterday", "2", "h", "-2h", "25:00"):
        with pytest.raises(typer.BadParameter):
            moment_ms(wrong, 0)


async def test_what_was_production_at_a_moment(command: Command, client: Client, topic_prefix: str) -> None:
    first = await client.announce(topic_prefix, manifest(digest="e" * 64))
    moved = await client.announce(topic_prefix, manifest(digest="f" * 64))
    back = await client.rollback(topic_prefix)
    for event, number, digest in ((first, 1, "e"), (moved, 2, "f"), (back, 1, "e")):
        then = await client.adapter_at(topic_prefix, event.at_ms)
        assert (then.aliases["production"].number, then.aliases["production"].digest) == (number, digest * 64)
    assert await client.adapter_at(topic_prefix, first.at_ms - 1) is None
    iso = datetime.fromtimestamp(moved.at_ms / 1000, UTC).isoformat()
    shown = json.loads((await command("adapters", "show", topic_prefix, "--at", iso, "--json")).stdout)
    assert shown["existed"] and shown["aliases"]["production"] == {"number": 2, "digest": "f" * 64}
    assert "production  1" in (await command("adapters", "show", topic_prefix, "--at", "0s")).stdout
    never = await command("adapters", "show", topic_prefix, "--at", "3d")
    assert never.exit_code == 1 and f"there was no adapter {topic_prefix}" in never.stderr
    await client.delete(topic_prefix, force=True)
    gone = await command("adapters", "show", topic_prefix, "--at", "0s", "--json")
    assert gone.exit_code == 1 and json.loads(gone.stdout)["existed"] is False
    assert (await client.adapter_at(topic_prefix, back.at_ms)).aliases["previous"].number == 2


async def test_the_tree_of_revisions(command: Command, client: Client, topic_prefix: str) -> None:
    for parent in (None, 1, 1):
        await client.announce(topic_prefix, manifest(metrics={"loss": 0.5}), parent=parent)
    lines = (await command("adapters", "show", topic_prefix, "--lineage")).stdout.splitlines()
    assert [line.split("  state=")[0] for line in lines] == ["1", "  2 (previous) from 1", "  3 (candidate, production) from 1"]
    assert 'metrics={"loss": 0.5}' in lines[2]
    tree = json.loads((await command("adapters", "show", topic_prefix, "--lineage", "--json")).stdout)
    assert [(one["number"], one["parent"], one["children"]) for one in tree] == [(1, None, [2, 3]), (2, 1, []), (3, 1, [])]
    both = await command("adapters", "show", topic_prefix, "--lineage", "--at", "1h")
    assert both.exit_code == 2
