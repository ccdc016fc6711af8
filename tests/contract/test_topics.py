"""Policy over all topics at once, and everything that is generated from them."""

import json
import re
import string
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from pydantic import TypeAdapter
from typer.testing import CliRunner

from mint_stream import contracts
from mint_stream.app import topic_docs
from mint_stream.app.asyncapi import document
from mint_stream.cli.topics import app
from mint_stream.contracts import RECORDS, Topic, directory, load_topics, with_partitions
from mint_stream.errors import InvalidSettings
from mint_stream.messages.inference import ReplyTo
from mint_stream.settings import ServingSettings

TOPICS = load_topics()
DEAD_LETTERS = {f"{stem}-dlq": topic.dead_letters() for stem, topic in TOPICS.items() if topic.dead_letter}
ROLES = {"clients", "serve", "train", "register", "evaluate"}
DAY_MS = 86_400_000
KAFKA_NAME = set(string.ascii_letters + string.digits + "._-")

every_topic = pytest.mark.parametrize("stem", sorted(TOPICS))


def retention_ms(topic: Topic) -> float:
    kept = int(topic.config["retention.ms"])
    return float("inf") if kept < 0 else kept


def variants(record: str) -> set[str]:
    """The names of the classes a record may be."""
    kind = RECORDS[record]
    members = get_args(get_args(kind)[0]) if hasattr(kind, "__metadata__") else get_args(kind)
    return {member.__name__ for member in members} or {kind.__name__}


def examples() -> list[Path]:
    return sorted((directory() / "examples").glob("*/*.json"))


@every_topic
def test_a_topic_file_is_short_and_named_as_its_topic(stem: str) -> None:
    path = directory() / f"{stem}.yaml"
    assert len(path.read_text().splitlines()) <= 23
    assert TOPICS[stem].name_pattern in (stem, f"{stem}-<pool>")
    assert set(TOPICS[stem].name("a.pool-1")) <= KAFKA_NAME and len(TOPICS[stem].dead_letter_name("p" * 128)) <= 249


@every_topic
def test_a_topic_says_who_writes_and_who_reads_it(stem: str) -> None:
    topic = TOPICS[stem]
    assert topic.producers and set(topic.producers) <= ROLES
    assert topic.consumers and set(topic.consumers) <= ROLES
    assert topic.purpose.endswith(".")


@every_topic
def test_the_cleanup_policy_is_written_and_fits_the_record(stem: str) -> None:
    topic = TOPICS[stem]
    assert topic.config["cleanup.policy"] == topic.cleanup
    tables = {"CatalogRecord", "PoolBase", "WorkerStatus"}
    assert (topic.cleanup == "compact") == (topic.record in tables), "the latest record a key is a table; everything else is a history"
    assert ("retention.ms" in topic.config) == (topic.cleanup == "delete")


@every_topic
def test_one_copy_may_be_lost_wherever_there_are_three_brokers_and_none_is_asked_of_one(stem: str) -> None:
    topic = TOPICS[stem]
    assert (topic.replicas(3), topic.settings(3)["min.insync.replicas"]) == (3, "2")
    assert (topic.replicas(1), topic.settings(1)["min.insync.replicas"]) == (1, "1")


def test_every_constant_is_its_file_and_every_file_has_a_constant() -> None:
    for stem, topic in TOPICS.items():
        assert getattr(contracts, stem.upper().replace("-", "_")) == topic


def test_work_has_dead_letters_that_are_kept_longer_and_take_more() -> None:
    work = {"inference-requests", "inference-batch", "training-jobs", "adapter-commands"}
    assert {stem for stem, topic in TOPICS.items() if topic.dead_letter} == work
    for stem in work:
        dead, origin = DEAD_LETTERS[f"{stem}-dlq"], TOPICS[stem]
        assert dead.name("p") == origin.dead_letter_name("p")
        assert retention_ms(dead) > retention_ms(origin)
        assert int(dead.config["max.message.bytes"]) > 2 * int(origin.config.get("max.message.bytes", 2**20))
        assert dead.partitions == origin.partitions and not dead.dead_letter


def test_cancellations_outlive_the_longest_deadline_and_controls_the_longest_job() -> None:
    longest_deadline_ms = 1000 * ServingSettings().max_deadline_s
    assert retention_ms(contracts.INFERENCE_CANCELLATIONS) > 2 * longest_deadline_ms
    assert retention_ms(contracts.TRAINING_CONTROLS) > retention_ms(contracts.TRAINING_JOBS)
    assert retention_ms(contracts.TRAINING_EVENTS) > retention_ms(contracts.TRAINING_JOBS)


def test_retentions_go_from_minutes_for_chunks_to_for_ever_for_the_history() -> None:
    ordered = [contracts.INFERENCE_CHUNKS, contracts.INFERENCE_REPLIES, contracts.INFERENCE_RESULTS, contracts.ADAPTER_EVENTS]
    assert all(retention_ms(short) < retention_ms(long) for short, long in pairwise(ordered))
    assert retention_ms(contracts.INFERENCE_CHUNKS) < DAY_MS / 24
    assert retention_ms(contracts.ADAPTER_EVENTS) == float("inf")
    assert retention_ms(contracts.INFERENCE_RESULTS) >= retention_ms(contracts.INFERENCE_REQUESTS), (
        "an answer is there as long as its question"
    )


def test_a_segment_ends_before_what_it_holds_and_a_table_is_compacted_within_a_day() -> None:
    for topic in TOPICS.values():
        longest_ms = DAY_MS if topic.cleanup == "compact" else retention_ms(topic)
        week_ms = 7 * DAY_MS  # Kafka begins a new segment, and can clean the old one, after a week unless told otherwise
        if longest_ms <= DAY_MS / 2 or topic.cleanup == "compact":
            assert int(topic.config.get("segment.ms", week_ms)) <= longest_ms, topic.name_pattern


def test_topics_that_share_keys_share_partition_counts() -> None:
    pairs = ((contracts.ADAPTER_COMMANDS, contracts.ADAPTER_REVISIONS), (contracts.INFERENCE_REPLIES, contracts.INFERENCE_CHUNKS))
    assert all(one.partitions == other.partitions for one, other in pairs)
    assert {topic.partitions for topic in TOPICS.values()} <= {1, 4, 32}


def test_replies_go_only_where_that_is_declared() -> None:
    assert {topic.name() for topic in TOPICS.values() if topic.reply} == {"inference-replies", "inference-chunks"}
    assert ReplyTo(topic=contracts.INFERENCE_REPLIES.name(), partition=0)


def test_only_the_registrar_writes_the_catalog() -> None:
    assert contracts.ADAPTER_REVISIONS.producers == contracts.ADAPTER_EVENTS.producers == ("register",)
    assert int(contracts.ADAPTER_REVISIONS.config["delete.retention.ms"]) >= DAY_MS


def test_the_names_of_pools_need_one() -> None:
    assert contracts.INFERENCE_REQUESTS.name("p") == "inference-requests-p"
    with pytest.raises(InvalidSettings, match="belongs to a pool"):
        contracts.INFERENCE_REQUESTS.name()


def test_fewer_partitions_are_for_keyed_topics_only() -> None:
    fewer = with_partitions(TOPICS, 2)
    assert fewer["adapter-commands"].partitions == 2 and fewer["base-models"].partitions == 1


def test_a_bad_topic_file_is_named_with_the_field(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text((directory() / "worker-status.yaml").read_text().replace("partitions: 4", "partitions: none"))
    with pytest.raises(InvalidSettings, match=r"bad\.yaml: partitions"):
        Topic.load(bad)


def test_generated_files_are_fresh_and_the_command_says_when_not(tmp_path: Path) -> None:
    assert topic_docs.outdated(TOPICS, directory()) == [], "run `mint-stream topics docs`"
    assert CliRunner().invoke(app, ["docs", "--check"]).exit_code == 0
    assert sorted(topic_docs.write(TOPICS, tmp_path)) == sorted(topic_docs.generated(TOPICS))
    (tmp_path / "README.md").write_text("old")
    assert topic_docs.outdated(TOPICS, tmp_path) == ["README.md"]


@pytest.mark.parametrize("path", examples(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_example_is_what_its_record_and_its_schema_say(path: Path) -> None:
    record = path.parent.name
    schema = json.loads((directory() / "schemas" / f"{record}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(path.read_text()), schema, cls=jsonschema.Draft202012Validator)
    decoded = TypeAdapter(RECORDS[record]).validate_json(path.read_bytes())
    assert TypeAdapter(RECORDS[record]).validate_json(decoded.encode()) == decoded


def test_every_kind_of_record_has_an_example() -> None:
    shown: dict[str, set[str]] = {}
    for path in examples():
        decoded = TypeAdapter(RECORDS[path.parent.name]).validate_json(path.read_bytes())
        shown.setdefault(path.parent.name, set()).add(type(decoded).__name__)
    assert shown == {topic.record: variants(topic.record) for topic in TOPICS.values()}


@pytest.mark.parametrize("record", sorted(RECORDS))
def test_a_schema_refuses_a_field_nobody_declared(record: str) -> None:
    path = next((directory() / "examples" / record).glob("*.json"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(path.read_text()), "no_such_field": 1}, topic_docs.schema(record))


def test_the_asyncapi_document_has_what_the_files_say() -> None:
    whole: dict[str, Any] = document(TOPICS)
    assert whole["asyncapi"] == "3.0.0" and set(whole["channels"]) == set(TOPICS)
    for stem, topic in TOPICS.items():
        channel = whole["channels"][stem]
        binding = channel["bindings"]["kafka"]
        assert (binding["partitions"], binding["replicas"]) == (topic.partitions, topic.replication)
        assert binding["topicConfiguration"].keys() == topic.config.keys()
        assert channel["address"] == topic.name("{pool}") and ("parameters" in channel) == ("<pool>" in topic.name_pattern)
    assert "receive:adapter-commands" in whole["operations"] and "send:training-controls" not in whole["operations"]


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    whole = document(TOPICS)
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(whole)))
    assert references
    for reference in references:
        place: Any = whole
        for part in reference.split("/"):
            place = place[part]


@every_topic
def test_the_page_for_people_has_a_section_on_each(stem: str) -> None:
    page = (directory() / "README.md").read_text()
    assert f"\n## {TOPICS[stem].name_pattern}\n\n{TOPICS[stem].purpose}\n" in page
