"""Using a fleet from the command line: each command against the real broker, the echo, and the real registrar."""

import json

import pytest

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.bus.table import LogReader
from mint_stream.client import Client
from mint_stream.client.requests import Ticket
from mint_stream.messages.inference import Cancellation
from mint_stream.messages.shared import ErrorBody
from mint_stream.messages.training import TrainingEvent, TrainingJob
from mint_stream.store import read_uri
from tests.adapter_commands import manifest
from tests.cli.conftest import Command
from tests.echo_serving import POOL

pytestmark = pytest.mark.kafka


async def test_a_prompt_is_answered_on_standard_output_and_told_about_on_the_other(command: Command):
    shown = await command("generate", "--prompt", "abc", "--adapter", "poet@3")
    assert (shown.exit_code, shown.stdout) == (0, "cba\n")
    assert shown.stderr.startswith("poet@3 · 3 + 3 tokens")


async def test_a_chat_as_json_is_the_result_record(command: Command, topic_prefix: str):
    shown = await command("generate", "--chat", "hi", "--system", "be brief", "--request-id", topic_prefix, "--json")
    result = json.loads(shown.stdout)
    assert (result["request_id"], result["text"], result["served_by"]["worker_id"]) == (topic_prefix, "ih", "echo")


async def test_a_stream_is_printed_as_it_comes(command: Command):
    assert (await command("generate", "--prompt", "abc", "--stream")).stdout == "cba\n"
    lines = (await command("generate", "--prompt", "abc", "--stream", "--json")).stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["c", "b", "a", "cba"]


async def test_an_error_answer_is_an_error_line_or_json_and_fails_either_way(command: Command):
    shown = await command("generate", "--prompt", "abc", "--adapter", "unknown")
    assert shown.exit_code == 1 and shown.stderr.startswith("error unknown-adapter: request ")
    as_json = await command("generate", "--prompt", "abc", "--adapter", "unknown", "--json")
    assert as_json.exit_code == 1 and json.loads(as_json.stdout)["error"]["code"] == "unknown-adapter"


async def test_a_request_is_sent_now_and_its_result_fetched_later(command: Command, topic_prefix: str):
    sent = await command("generate", "--prompt", "abc", "--request-id", topic_prefix, "--no-wait")
    assert (sent.exit_code, sent.stdout) == (0, f"{topic_prefix}\n")
    assert (await command("result", topic_prefix)).stdout == "cba\n"
    assert json.loads((await command("result", topic_prefix, "--json")).stdout)["text"] == "cba"
    other = await command("result", topic_prefix, "--tenant", "somebody-else", "--timeout", 0.5)
    assert other.exit_code == 1 and other.stderr.startswith("error reply-timeout: ")


async def test_a_ticket_is_what_a_request_sent_without_waiting_leaves(command: Command, client: Client):
    ticket = Ticket.model_validate_json((await command("generate", "--prompt", "xyz", "--no-wait", "--json")).stdout)
    assert (await client.result(ticket)).text == "zyx"


async def test_a_request_is_cancelled_by_its_id(command: Command, fleet: Connection, topic_prefix: str):
    found: list[Cancellation] = []
    reader = LogReader(
        fleet,
        contracts.INFERENCE_CANCELLATIONS.name(),
        lambda _partition, records, _next: found.extend(Cancellation.decode(record.value) for record in records),
        "latest",
    )
    await reader.start()
    assert "cancel requested" in (await command("cancel", topic_prefix, "--tenant", "t", "--reason", "enough")).stdout
    assert (await command("cancel", topic_prefix, "--reason", "x" * 2000)).stderr.startswith("error invalid-request: reason")
    await reader.caught_up()
    await reader.stop()
    assert [(one.request_id, one.tenant, one.reason) for one in found] == [(topic_prefix, "t", "enough")]


async def test_the_events_of_an_adapter_are_watched_from_the_start_or_from_now_on(command: Command, client: Client, topic_prefix: str):
    await client.announce(topic_prefix, manifest(digest="d" * 64), promotion="manual")
    shown = await command("adapters", "watch", topic_prefix, "--from-start", "--count", 2, "--json")
    assert [json.loads(line)["type"] for line in shown.stdout.splitlines()] == ["revision-announced", "alias-moved"]
    told = (await command("adapters", "watch", topic_prefix, "--from-start", "--count", 1)).stdout
    assert f"{topic_prefix}  revision-announced" in told and '"number": 1' in told


async def test_messages_come_from_a_file_and_a_broken_one_is_named(command: Command, tmp_path):
    turns = tmp_path / "turns.json"
    turns.write_text('[{"role": "user", "content": "xyz"}]')
    assert (await command("generate", "--messages", turns)).stdout == "zyx\n"
    turns.write_text("[")
    broken = await command("generate", "--messages", turns)
    assert broken.exit_code == 1 and "turns.json" in broken.stderr


async def test_adapters_are_listed_shown_promoted_rolled_back_and_retired(command: Command, client: Client, topic_prefix: str):
    for digest in "ef":
        await client.announce(topic_prefix, manifest(digest=digest * 64), promotion="manual")
    moved = await command("adapters", "promote", topic_prefix, 1, "--json")
    assert json.loads(moved.stdout)["type"] == "alias-moved"
    await command("adapters", "promote", topic_prefix, 2)
    back = json.loads((await command("adapters", "rollback", topic_prefix, "--json")).stdout)
    assert (back["number"], back["cause"]) == (1, "roll-back")
    assert json.loads((await command("adapters", "rules", topic_prefix, "auto", "--json")).stdout)["rule"] == "auto"
    assert json.loads((await command("adapters", "retire", topic_prefix, 2, "--json")).stdout)["type"] == "revision-retired"
    shown = json.loads((await command("adapters", "show", topic_prefix, "--json")).stdout)
    assert shown["head"]["aliases"]["production"] == 1 and [r["state"] for r in shown["revisions"]] == ["announced", "retired"]
    table = (await command("adapters", "show", topic_prefix)).stdout
    assert "production = 1" in table and "retired" in table
    rows = (await command("adapters", "list")).stdout.splitlines()
    assert next(row for row in rows if topic_prefix in row).split() == [topic_prefix, POOL, "1", "2", "auto"]


async def test_a_canary_is_set_shown_and_taken_off(command: Command, client: Client, topic_prefix: str):
    for digest in "ef":
        await client.announce(topic_prefix, manifest(digest=digest * 64), promotion="manual")
    await command("adapters", "promote", topic_prefix, 1)
    began = json.loads((await command("adapters", "canary", topic_prefix, "--revision", 2, "--share", "0.25%", "--json")).stdout)
    assert (began["type"], began["canary"]) == ("canary-set", {"number": 2, "share_basis_points": 25})
    assert "canary: 2 at 0.25 %" in (await command("adapters", "show", topic_prefix)).stdout
    assert "canary" not in json.loads((await command("adapters", "canary", topic_prefix, "--off", "--json")).stdout)
    assert "canary" not in (await command("adapters", "show", topic_prefix)).stdout


async def test_a_spread_is_set(command: Command, client: Client, topic_prefix: str):
    await client.announce(topic_prefix, manifest())
    told = json.loads((await command("adapters", "spread", topic_prefix, 4, "--json")).stdout)
    assert (told["type"], told["spread"]) == ("spread-set", 4)
    assert "over 4 partitions" in (await command("adapters", "show", topic_prefix)).stdout


@pytest.mark.parametrize("share", ["0.05", "5 %%", "0%", "0.001%", "101%", "nan%", "five%"])
async def test_what_is_no_share_is_refused(command: Command, share: str):
    refused = await command("adapters", "canary", "a", "--revision", 2, "--share", share)
    assert refused.exit_code == 2 and "percentage" in refused.stderr


@pytest.mark.parametrize("options", [(), ("--revision", 2, "--off")])
async def test_a_canary_is_either_a_revision_or_off(command: Command, options: tuple[object, ...]):
    assert (await command("adapters", "canary", "a", *options)).exit_code == 2


async def test_an_adapter_is_deleted_when_it_is_confirmed_and_forced(command: Command, client: Client, topic_prefix: str):
    await client.announce(topic_prefix, manifest())
    asked = await command("adapters", "delete", topic_prefix)
    assert asked.exit_code == 1 and f"Delete adapter {topic_prefix} of pool {POOL} with 1 revisions, production is 1" in asked.stderr
    refused = await command("adapters", "delete", topic_prefix, "--yes")
    assert refused.exit_code == 1 and "production points at revision 1" in refused.stderr
    gone = await command("adapters", "delete", topic_prefix, "--yes", "--force", "--json")
    assert json.loads(gone.stdout)["type"] == "adapter-deleted"
    assert (await command("adapters", "show", topic_prefix)).stderr.startswith("error unknown-adapter: ")
    assert (await command("adapters", "delete", topic_prefix, "--yes")).stderr.startswith("error unknown-adapter: ")


async def test_a_refused_command_is_one_line_with_the_reason(command: Command, topic_prefix: str):
    refused = await command("adapters", "promote", topic_prefix, 1)
    assert refused.exit_code == 1 and refused.stderr.startswith("error command-rejected: promote of adapter")
    assert (await command("adapters", "show", topic_prefix)).stderr.startswith("error unknown-adapter: ")


async def test_a_job_is_submitted_watched_listed_and_cancelled(command: Command, fleet: Connection, topic_prefix: str, tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "a", "completion": "b"}\n')
    options = ("--steps", 4, "--rank", 2, "--target", "q_proj", "--job-id", topic_prefix, "--rule", "manual")
    shown = await command("jobs", "submit", "poet", lines, *options, "--json")
    job = TrainingJob.model_validate_json(shown.stdout)
    assert (job.job_id, job.hyperparameters.steps, job.lora.target_modules) == (topic_prefix, 4, ("q_proj",))
    assert read_uri(job.dataset_uri, [(tmp_path / "store").as_uri()], 1000) == lines.read_bytes() and job.promotion == "manual"
    await tell(fleet, topic_prefix, {"state": "running", "step": 2, "loss": 0.5}, {"state": "succeeded", "step": 4, "number": 7})
    watched = await command("jobs", "watch", topic_prefix, "--json")
    assert [json.loads(line)["state"] for line in watched.stdout.splitlines()] == ["running", "succeeded"]
    assert watched.exit_code == 0
    assert "succeeded at step 4/4: revision 7" in (await command("jobs", "watch", topic_prefix)).stdout
    assert topic_prefix in (await command("jobs", "list")).stdout
    assert "cancel requested" in (await command("jobs", "cancel", topic_prefix)).stdout


async def test_watching_a_job_that_failed_says_why_and_fails(command: Command, fleet: Connection, topic_prefix: str):
    await tell(fleet, topic_prefix, {"state": "failed", "error": ErrorBody(code="invalid-dataset", message="line 3")})
    shown = await command("jobs", "watch", topic_prefix)
    assert shown.exit_code == 1 and "failed at step 0/4: invalid-dataset: line 3" in shown.stdout


async def tell(connection: Connection, job_id: str, *changes) -> None:
    producer = Producer(connection, source="test")
    await producer.start()
    for change in changes:
        event = TrainingEvent(job_id=job_id, adapter_id="poet", tenant="t", worker_id="w", steps=4, at_ms=1, **change)
        await producer.publish(contracts.TRAINING_EVENTS, event, job_id)
    await producer.stop()
