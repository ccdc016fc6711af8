"""What the cluster says of a topic that a local copy of it depends on: its id, and how long tombstones are kept.

aiokafka speaks Metadata up to version 5; topic ids came with version 10 (KIP-516), whose layout is declared here."""

from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from mint_stream.bus.connection import Connection, failure

_RETENTION = "delete.retention.ms"
_DEFAULT_RETENTION_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class TopicFacts:
    """A topic as it stands on the cluster."""

    topic_id: str
    delete_retention_ms: int


async def topic_facts(connection: Connection, topic: str) -> TopicFacts:
    """Ask for both. Raises BusUnavailable, also when the topic does not exist or the brokers are older than Kafka 2.8."""
    try:
        return TopicFacts(await _topic_id(connection, topic), await _retention_ms(connection, topic))
    except (KafkaError, IncompatibleBrokerVersion, NotImplementedError) as error:
        raise await failure(connection, f"cannot describe topic {topic} at {connection.bootstrap_servers}", error) from error


async def _topic_id(connection: Connection, topic: str) -> str:
    client = AIOKafkaClient(**connection.options())
    try:
        await client.bootstrap()
        response: Any = await client.send(client.get_random_node(), _MetadataRequest(topic))
    finally:
        await client.close()
    error_code, _name, topic_id, *_ = response.topics[0]
    if error_code:
        raise for_code(error_code)(topic)
    return str(topic_id)


async def _retention_ms(connection: Connection, topic: str) -> int:
    admin = AIOKafkaAdminClient(**connection.options())
    try:
        await admin.start()
        responses: list[Any] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    finally:
        await admin.close()
    values = {entry[0]: entry[1] for response in responses for resource in response.resources for entry in resource[4]}
    return int(values.get(_RETENTION) or _DEFAULT_RETENTION_MS)


class _Uuid(AbstractType[UUID]):  # type: ignore[misc]  # aiokafka has no stubs
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: Any) -> UUID:
        return UUID(bytes=data.read(16))

    @classmethod
    def repr(cls, value: UUID) -> str:
        return str(value)


_TEXT = CompactString("utf-8")


class _MetadataResponse10(Response):  # type: ignore[misc]  # aiokafka has no stubs
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), ("tags", TaggedFields))),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _TEXT),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequest10(RequestStruct):  # type: ignore[misc]  # aiokafka has no stubs
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataRequest10]):  # type: ignore[misc]  # aiokafka has no stubs
    API_KEY: ClassVar[int] = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_MetadataRequest10]) -> _MetadataRequest10:
        return request_struct_class([(UUID(int=0), self._topic, {})], False, False, False, {})
