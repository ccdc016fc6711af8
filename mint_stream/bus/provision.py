"""Topics on the cluster as topics/*.yaml says: `plan` compares, `apply` creates and sets, `verify` is what a worker asks at its start.

Law: after `apply` the next `plan` is empty. What could lose or misplace records (another partition count, another cleanup policy) is
never done here: it is a migration, and reported as such.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from mint_stream.bus.connection import Connection, failure
from mint_stream.contracts import POOL, Topic
from mint_stream.errors import TopicMismatch

Topics = Iterable[Topic] | Mapping[str, Topic]

_SETTLE_S = 60.0
_POLL_S = 0.05
_SET_ON_TOPIC = 1
"""DescribeConfigs' source of a value set on the topic itself."""


@dataclass(frozen=True)
class Change:
    """One difference between the cluster and the files: `create` and `configure` are carried out by `apply`, `migrate` by a person."""

    topic: str
    action: Literal["create", "configure", "migrate"]
    detail: str


@dataclass(frozen=True)
class _Standing:
    """A topic as it stands on the cluster."""

    partitions: int
    config: Mapping[str, str]
    own: Mapping[str, str]
    """The part of `config` that was set on the topic itself."""


async def plan(connection: Connection, topics: Topics, pool: str | None = None) -> list[Change]:
    """What is different. Without a pool, topics of a pool are left out. Raises BusUnavailable."""
    async with _admin(connection) as admin:
        return await _plan(admin, _named(topics, pool))


async def apply(connection: Connection, topics: Topics, pool: str | None = None) -> list[Change]:
    """Create and configure; returns what was done, when every new partition has a leader.

    Raises TopicMismatch, having changed nothing, when a topic needs a migration."""
    wanted = _named(topics, pool)
    async with _admin(connection) as admin:
        changes = await _plan(admin, wanted)
        _refuse([change for change in changes if change.action == "migrate"])
        brokers = await _brokers(admin)
        new = [change.topic for change in changes if change.action == "create"]
        await _create(admin, {name: wanted[name] for name in new}, brokers)
        await _configure(admin, {change.topic: wanted[change.topic] for change in changes if change.action == "configure"}, brokers)
        await _settled(admin, set(new))
        return changes


async def verify(connection: Connection, topics: Topics, pool: str | None = None) -> None:
    """Raises TopicMismatch when a topic is missing or has another partition count or cleanup policy. Other settings may differ."""
    async with _admin(connection) as admin:
        changes = await _plan(admin, _named(topics, pool))
    _refuse([change for change in changes if change.action != "configure"])


def differences(name: str, topic: Topic, standing: _Standing | None, brokers: int) -> list[Change]:
    """One topic's changes: pure."""
    if standing is None:
        return [Change(name, "create", f"{topic.partitions} partitions, {topic.cleanup}, {topic.replicas(brokers)} replicas")]
    changes = []
    if standing.partitions != topic.partitions:
        changes.append(Change(name, "migrate", f"has {standing.partitions} partitions, not {topic.partitions}"))
    if topic.cleanup not in standing.config.get("cleanup.policy", "delete").split(","):
        changes.append(Change(name, "migrate", f"has cleanup.policy {standing.config['cleanup.policy']}, not {topic.cleanup}"))
    wanted = {key: value for key, value in topic.settings(brokers).items() if key != "cleanup.policy"}
    other = [f"{key} {standing.config.get(key, 'unset')} -> {value}" for key, value in wanted.items() if standing.config.get(key) != value]
    return [*changes, Change(name, "configure", ", ".join(other))] if other else changes


def _named(topics: Topics, pool: str | None) -> dict[str, Topic]:
    """By their names on the cluster, dead letter topics among them."""
    given = list(topics.values() if isinstance(topics, Mapping) else topics)
    every = given + [topic.dead_letters() for topic in given if topic.dead_letter]
    return {topic.name(pool): topic for topic in every if pool or POOL not in topic.name_pattern}


def _refuse(changes: list[Change]) -> None:
    if not changes:
        return
    first = changes[0]
    what = "does not exist; run `mint-stream topics apply`" if first.action == "create" else f"{first.detail}; changing that is a migration"
    more = f" (and {len(changes) - 1} more: see `mint-stream topics plan`)" if len(changes) > 1 else ""
    raise TopicMismatch(f"topic {first.topic} {what}{more}")


@asynccontextmanager
async def _admin(connection: Connection) -> AsyncIterator[Any]:
    admin = AIOKafkaAdminClient(**connection.options())
    try:
        await admin.start()
        yield admin
    except (KafkaError, TimeoutError) as error:
        raise await failure(connection, f"Kafka at {connection.bootstrap_servers} could not be asked about its topics", error) from error
    finally:
        await admin.close()


async def _plan(admin: Any, wanted: Mapping[str, Topic]) -> list[Change]:
    brokers = await _brokers(admin)
    standing = await _standing(admin, wanted)
    return [change for name, topic in wanted.items() for change in differences(name, topic, standing.get(name), brokers)]


async def _brokers(admin: Any) -> int:
    """How many brokers are live: at least one, so a broker that only just listens is waited for."""
    live: list[Any] = []

    async def missing() -> list[str]:
        live[:] = (await admin.describe_cluster())["brokers"]
        return [] if live else ["a broker"]

    await _until(missing)
    return len(live)


async def _standing(admin: Any, names: Iterable[str]) -> dict[str, _Standing]:
    # All topics are listed: asking for one by name would create it where the cluster creates topics by itself.
    counts = {found["topic"]: len(found["partitions"]) for found in await admin.describe_topics() if found["topic"] in set(names)}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in counts]
    answers = await admin.describe_configs(resources) if resources else []
    return {found[3]: _read(counts[found[3]], found[4]) for answer in answers for found in answer.resources}


def _read(partitions: int, entries: Iterable[Any]) -> _Standing:
    rows = list(entries)
    own = {row[0]: row[1] for row in rows if row[3] == _SET_ON_TOPIC}
    return _Standing(partitions, {row[0]: row[1] for row in rows}, own)


async def _create(admin: Any, topics: Mapping[str, Topic], brokers: int) -> None:
    new = [
        NewTopic(name, topic.partitions, topic.replicas(brokers), topic_configs=topic.settings(brokers)) for name, topic in topics.items()
    ]
    answer = await admin.create_topics(new) if new else None
    for name, code, message in answer.topic_errors if answer else ():
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:  # another process applies the same files
            raise error(f"topic {name}: {message}")


async def _configure(admin: Any, topics: Mapping[str, Topic], brokers: int) -> None:
    """AlterConfigs replaces all that was set on a topic, so what others set is sent again."""
    standing = await _standing(admin, topics)
    resources = [
        ConfigResource(ConfigResourceType.TOPIC, name, {**standing[name].own, **topic.settings(brokers)}) for name, topic in topics.items()
    ]
    for answer in await admin.alter_configs(resources) if resources else ():
        for code, message, _kind, name in answer.resources:
            if code:
                raise for_code(code)(f"topic {name}: {message}")


async def _settled(admin: Any, names: set[str]) -> None:
    """Until every partition of `names` has a leader."""
    await _until(lambda: _leaderless(admin, names))


async def _leaderless(admin: Any, names: set[str]) -> set[str]:
    return names - {found["topic"] for found in await admin.describe_topics() if _led(found["partitions"])}


async def _until(remaining: Callable[[], Awaitable[Collection[str]]]) -> None:
    """Ask until nothing remains. Raises TimeoutError."""
    async with asyncio.timeout(_SETTLE_S):
        while True:
            if not await remaining():
                return
            await asyncio.sleep(_POLL_S)


def _led(partitions: list[dict[str, Any]]) -> bool:
    return bool(partitions) and all(partition["leader"] >= 0 for partition in partitions)
