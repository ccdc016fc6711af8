"""Topics on a real broker: what `apply` leaves is what `plan` and `verify` find right."""

from asyncio import gather
from collections.abc import Iterable

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from mint_stream.bus import provision
from mint_stream.bus.connection import Connection
from mint_stream.contracts import Topic, load_topics, with_partitions
from mint_stream.errors import BusUnavailable, TopicMismatch

pytestmark = pytest.mark.kafka


@pytest.fixture
def topics(topic_prefix: str) -> list[Topic]:
    """A pool's work topic with dead letters, and a compacted one, under names of this test."""
    declared = with_partitions(load_topics(), 2)
    kinds = (declared["inference-requests"], declared["adapter-revisions"])
    return [topic.model_copy(update={"name_pattern": f"{topic_prefix}-{topic.name_pattern}"}) for topic in kinds]


async def alter(connection: Connection, topic: str, config: dict[str, str]) -> None:
    """Returns when the broker shows it: the controller, who says that it is done, is a moment ahead."""
    admin = AIOKafkaAdminClient(**connection.options())
    await admin.start()
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, config)])
    await admin.close()
    while not config.items() <= (await config_of(connection, topic)).items():
        pass


async def config_of(connection: Connection, topic: str) -> dict[str, str]:
    admin = AIOKafkaAdminClient(**connection.options())
    await admin.start()
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    await admin.close()
    return {row[0]: row[1] for answer in answers for found in answer.resources for row in found[4]}


def actions(changes: Iterable[provision.Change]) -> list[tuple[str, str]]:
    return [(change.topic, change.action) for change in changes]


async def test_after_apply_the_plan_is_empty_and_a_worker_may_start(connection: Connection, topics: list[Topic]) -> None:
    work, table = topics
    created = await provision.apply(connection, topics, "p")
    assert actions(created) == [(work.name("p"), "create"), (table.name(), "create"), (work.dead_letter_name("p"), "create")]
    assert await provision.plan(connection, topics, "p") == []
    await provision.verify(connection, topics, "p")
    found = await config_of(connection, table.name())
    assert found["cleanup.policy"] == "compact" and found["min.insync.replicas"] == "1"


async def test_without_a_pool_the_topics_of_pools_are_left_alone(connection: Connection, topics: list[Topic]) -> None:
    assert actions(await provision.plan(connection, topics)) == [(topics[1].name(), "create")]


async def test_a_worker_refuses_a_cluster_that_lacks_a_topic(connection: Connection, topics: list[Topic]) -> None:
    with pytest.raises(TopicMismatch, match="does not exist; run `mint-stream topics apply`"):
        await provision.verify(connection, topics, "p")


async def test_another_partition_count_is_a_migration_and_nothing_is_changed(connection: Connection, topics: list[Topic]) -> None:
    await provision.apply(connection, topics[1:], "p")
    admin = AIOKafkaAdminClient(**connection.options())
    await admin.start()
    await admin.create_partitions({topics[1].name(): NewPartitions(3)})
    while len((await admin.describe_topics([topics[1].name()]))[0]["partitions"]) < 3:
        pass
    await admin.close()
    for call, asked in ((provision.apply, topics), (provision.verify, topics[1:])):
        with pytest.raises(TopicMismatch, match="has 3 partitions, not 2; changing that is a migration"):
            await call(connection, asked, "p")
    assert (topics[0].name("p"), "create") in actions(await provision.plan(connection, topics, "p"))


async def test_another_cleanup_policy_is_a_migration(connection: Connection, topics: list[Topic]) -> None:
    table = topics[1]
    await provision.apply(connection, topics, "p")
    await alter(connection, table.name(), {"cleanup.policy": "delete"})
    with pytest.raises(TopicMismatch, match=r"has cleanup\.policy delete, not compact"):
        await provision.verify(connection, topics, "p")


async def test_a_drifted_setting_is_set_again_and_what_others_set_is_kept(connection: Connection, topics: list[Topic]) -> None:
    work = topics[0]
    await provision.apply(connection, topics, "p")
    await alter(connection, work.name("p"), {**work.settings(1), "retention.ms": "1000", "compression.type": "zstd"})
    await provision.verify(connection, topics, "p")  # a worker can live with it
    changes = await provision.apply(connection, topics, "p")
    assert actions(changes) == [(work.name("p"), "configure")]
    assert f"retention.ms 1000 -> {work.config['retention.ms']}" in changes[0].detail
    found = await config_of(connection, work.name("p"))
    assert (found["retention.ms"], found["compression.type"]) == (work.config["retention.ms"], "zstd")


async def test_two_that_apply_at_once_both_succeed(connection: Connection, topics: list[Topic]) -> None:
    await gather(provision.apply(connection, topics, "p"), provision.apply(connection, topics, "p"))
    assert await provision.plan(connection, topics, "p") == []


async def test_a_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1"):
        await provision.plan(Connection("127.0.0.1:1"), [])
