"""The AsyncAPI document and the generated files, over topics that are not ours: what a YAML file says is what the document says."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mint_stream.app.asyncapi import document
from mint_stream.app.topic_docs import generated, outdated, readme, write
from mint_stream.contracts import Topic, directory, load_topics

TOPICS = load_topics()
DOCUMENT: dict[str, Any] = document(TOPICS)


def as_written(stem: str) -> dict[str, Any]:
    """The file itself, not what our loader makes of it."""
    fields: dict[str, Any] = yaml.safe_load((directory() / f"{stem}.yaml").read_text())
    return fields


def topic(tmp_path: Path, **fields: object) -> Topic:
    path = tmp_path / "letters.yaml"
    about = {"name": "letters", "purpose": "Letters.", "key": "whom", "record": "Cancellation", "version": 1}
    rest = {
        "producers": ["clients"],
        "consumers": ["serve"],
        "partitions": 3,
        "config": {"cleanup.policy": "delete", "retention.ms": 90_000},
    }
    path.write_text(yaml.safe_dump({**about, **rest, **fields}))
    return Topic.load(path)


@pytest.mark.parametrize("stem", sorted(TOPICS))
def test_partitions_replicas_and_every_setting_are_those_of_the_file(stem: str):
    fields, binding = as_written(stem), DOCUMENT["channels"][stem]["bindings"]["kafka"]
    assert binding["partitions"] == fields["partitions"]
    assert binding["replicas"] == fields.get("replication", 3)
    said = {key: ",".join(value) if isinstance(value, list) else value for key, value in binding["topicConfiguration"].items()}
    assert said == fields["config"]


@pytest.mark.parametrize("stem", sorted(TOPICS))
def test_a_setting_that_is_a_number_is_a_number_and_policies_are_a_list(stem: str):
    settings = DOCUMENT["channels"][stem]["bindings"]["kafka"]["topicConfiguration"]
    assert isinstance(settings["cleanup.policy"], list)
    assert all(isinstance(value, int | float) for key, value in settings.items() if key.endswith((".ms", ".bytes", ".ratio")))


@pytest.mark.parametrize("stem", sorted(TOPICS))
def test_a_message_is_named_after_its_record_and_keyed_as_the_file_says(stem: str):
    message = DOCUMENT["components"]["messages"][f"{stem}:Message"]
    assert (message["name"], message["title"]) == (as_written(stem)["record"],) * 2
    assert message["bindings"]["kafka"]["key"]["description"] == as_written(stem)["key"]
    assert "correlationId" not in message and "ce_id" in message["headers"]["properties"]


@pytest.mark.parametrize("stem", sorted(TOPICS))
def test_operations_are_by_the_roles_of_the_file_and_clients_are_outside(stem: str):
    fields = as_written(stem)
    for action, roles in (("receive", fields["consumers"]), ("send", fields["producers"])):
        inside = sorted(set(roles) - {"clients"})
        operation = DOCUMENT["operations"].get(f"{action}:{stem}")
        assert (operation is None) == (not inside)
        if operation is not None:
            assert operation["action"] == action and operation["description"] == f"by {', '.join(inside)}"
            assert operation["channel"] == {"$ref": f"#/channels/{stem}"}


def test_no_operation_is_of_a_topic_that_is_not_there():
    assert {name.partition(":")[2] for name in DOCUMENT["operations"]} <= set(TOPICS)


def test_the_document_is_json_and_the_same_every_time():
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT == document(TOPICS)


def test_a_topic_of_a_pool_has_the_pool_as_a_parameter_and_others_have_none(tmp_path: Path):
    whole = document({"letters": topic(tmp_path), "notes": topic(tmp_path, name="notes-<pool>")})
    assert "parameters" not in whole["channels"]["letters"] and whole["channels"]["letters"]["address"] == "letters"
    assert "pool" in whole["channels"]["notes"]["parameters"] and whole["channels"]["notes"]["address"] == "notes-{pool}"


def test_fewer_replicas_in_the_file_are_fewer_in_the_document(tmp_path: Path):
    assert document({"letters": topic(tmp_path, replication=2)})["channels"]["letters"]["bindings"]["kafka"]["replicas"] == 2


@pytest.mark.parametrize(
    ("retention_ms", "said"),
    [
        (90_000, "delete after 90 s"),
        (120_000, "delete after 2 min"),
        (7_200_000, "delete after 2 h"),
        (172_800_000, "delete after 2 d"),
        (1500, "delete after 1500 ms"),
        (-1, "kept for ever"),
    ],
)
def test_people_read_durations_in_the_largest_unit_that_is_exact(tmp_path: Path, retention_ms: int, said: str):
    config = {"cleanup.policy": "delete", "retention.ms": retention_ms}
    page = readme({"letters": topic(tmp_path, config=config)})
    assert f"| `letters` | Cancellation | whom | {said} | 3 |  |" in page and f"- {said}\n" in page


def test_what_is_stale_is_named_written_once_and_then_fresh(tmp_path: Path):
    topics = {"letters": topic(tmp_path)}
    below = tmp_path / "generated"
    names = sorted(generated(topics))
    assert names == ["README.md", "asyncapi.json", "schemas/Cancellation.json"]
    assert sorted(outdated(topics, below)) == names and not below.exists()
    assert sorted(write(topics, below)) == names
    assert outdated(topics, below) == write(topics, below) == []
    (below / "README.md").write_text("by hand")
    assert outdated(topics, below) == ["README.md"]
    assert outdated({"letters": topic(tmp_path, partitions=4)}, below) == ["asyncapi.json", "README.md"]
    assert write(topics, below) == ["README.md"]
