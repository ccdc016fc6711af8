"""Every kind of client over TLS and SCRAM, as the settings say; who is refused is told so at once, in one typed error."""

import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from mint_stream.app.shell import Shell, fleet_broker
from mint_stream.bus import provision
from mint_stream.bus.connection import Connection
from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Intake
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.bus.table import LogReader
from mint_stream.bus.topic_facts import topic_facts
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.client import Client
from mint_stream.client.connect import connection_from
from mint_stream.contracts import ADAPTER_COMMANDS, TRAINING_CONTROLS, TRAINING_EVENTS
from mint_stream.errors import AccessRefused, BusUnavailable, InvalidSettings, TopicMismatch
from mint_stream.metrics import Metrics
from mint_stream.settings import HttpSettings, Settings
from tests.secured_kafka import MINE, MINT, NOBODY, PASSWORDS, READER, SecuredKafka, make_certificates, secured_kafka

pytestmark = pytest.mark.kafka

KEPT = "kept"
TOPICS = [TRAINING_CONTROLS.model_copy(update={"name_pattern": name, "partitions": 1}) for name in (KEPT, MINE)]


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    with secured_kafka(tmp_path_factory.mktemp("secured") / "kafka") as running:
        listed = [topic.model_copy(update={"partitions": 1}) for topic in (TRAINING_EVENTS, ADAPTER_COMMANDS)]
        await provision.apply(running.connection(MINT), [*TOPICS, *listed])
        await produce(running.connection(MINT))
        yield running


async def administer(connection: Connection) -> None:
    await provision.plan(connection, TOPICS)


async def describe(connection: Connection) -> None:
    assert (await topic_facts(connection, KEPT)).topic_id


async def produce(connection: Connection, topic: str = KEPT) -> None:
    producer = Producer(connection, "test")
    try:
        await producer.start()
        await producer.publish_raw(Outgoing(topic, b"k", b"v"))
    finally:
        await producer.stop()


async def transact(connection: Connection) -> None:
    producer = TransactionalProducer(connection, "test", "test", timeout_s=10)
    try:
        await producer.start()
        await producer.begin()
        await producer.send_raw(Outgoing(KEPT, b"k", b"t"))
        assert len(await producer.commit()) == 1
    finally:
        await producer.stop()


async def read(connection: Connection) -> None:
    found: list[bytes | None] = []
    reader = LogReader(connection, KEPT, lambda _partition, records, _next: found.extend(record.value for record in records))
    try:
        await reader.start()
        await reader.caught_up()
    finally:
        await reader.stop()
    assert b"v" in found


async def take_work(connection: Connection) -> None:
    intake = Intake(connection, [KEPT], "workers", DeadLetters(Producer(connection, "test")))
    try:
        await intake.start()
        await intake.until(lambda: bool(intake.assigned))
    finally:
        await intake.stop()


async def follow_the_fleet(connection: Connection) -> None:
    broker = fleet_broker(connection)
    try:
        await broker.start()
        await broker.publish(b"x", KEPT)
    finally:
        await broker.stop()


async def use(connection: Connection) -> None:
    async with Client(connection, pool="p") as client:
        assert await client.jobs() == ()


Way = Callable[[Connection], Awaitable[None]]
OURS: list[Way] = [administer, describe, produce, transact, read, take_work, use]
SOME: list[Way] = [administer, produce, read]


@pytest.mark.parametrize("way", [*OURS, follow_the_fleet], ids=lambda way: way.__name__)
async def test_every_client_gets_in_with_the_right_password(broker: SecuredKafka, way: Way) -> None:
    await way(broker.connection(MINT))


@pytest.mark.parametrize("way", OURS, ids=lambda way: way.__name__)
async def test_a_wrong_password_is_one_clear_error(broker: SecuredKafka, way: Way) -> None:
    with pytest.raises(AccessRefused, match=r"refuses user mint: .*invalid credentials.*check the MINT_KAFKA__SASL_ settings"):
        await way(broker.connection(MINT, "wrong"))


@pytest.mark.parametrize("way", SOME, ids=lambda way: way.__name__)
async def test_a_broker_that_another_authority_vouches_for_is_one_clear_error(broker: SecuredKafka, way: Way, tmp_path: Path) -> None:
    stranger, _ = make_certificates(tmp_path)
    with pytest.raises(AccessRefused, match=r"no TLS with .*certificate verify failed.*check MINT_KAFKA__SSL_CA_FILE"):
        await way(broker.connection(MINT, ca_file=stranger))


@pytest.mark.parametrize("way", SOME, ids=lambda way: way.__name__)
async def test_a_certificate_file_that_is_not_there_is_named(broker: SecuredKafka, way: Way, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"MINT_KAFKA__SSL_CA_FILE: .*nothing\.pem"):
        await way(broker.connection(MINT, ca_file=tmp_path / "nothing.pem"))


@pytest.mark.parametrize("way", SOME, ids=lambda way: way.__name__)
async def test_a_client_without_tls_is_told_that_nobody_answers(broker: SecuredKafka, way: Way) -> None:
    with pytest.raises(BusUnavailable):
        await way(Connection(f"127.0.0.1:{broker.port}"))


async def test_a_role_with_a_wrong_password_ends_at_once_with_the_reason(broker: SecuredKafka) -> None:
    with pytest.raises(AccessRefused, match="refuses user mint"):
        await Shell((), broker.connection(MINT, "wrong"), Metrics()).serve(HttpSettings())


@pytest.mark.parametrize("way", [administer, describe, read, take_work, use], ids=lambda way: way.__name__)
async def test_who_may_read_reads(broker: SecuredKafka, way: Way) -> None:
    await way(broker.connection(READER))


@pytest.mark.parametrize("way", [produce, transact], ids=lambda way: way.__name__)
async def test_an_unauthorised_write_is_one_clear_error(broker: SecuredKafka, way: Way) -> None:
    await produce(broker.connection(READER), MINE)
    with pytest.raises(AccessRefused, match="does not let user reader do this"):
        await way(broker.connection(READER))


@pytest.mark.parametrize("way", [describe, produce, transact, read, take_work, use], ids=lambda way: way.__name__)
async def test_who_may_nothing_is_told_so(broker: SecuredKafka, way: Way) -> None:
    with pytest.raises(AccessRefused, match="does not let user nobody do this"):
        await way(broker.connection(NOBODY))


async def test_topics_that_one_may_not_see_are_not_there(broker: SecuredKafka) -> None:
    with pytest.raises(TopicMismatch, match="does not exist"):
        await provision.verify(broker.connection(NOBODY), TOPICS)


async def test_the_settings_in_the_environment_make_the_connection(broker: SecuredKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = broker.connection(MINT)
    given = {
        "BOOTSTRAP_SERVERS": wanted.bootstrap_servers,
        "SECURITY_PROTOCOL": "SASL_SSL",
        "SASL_MECHANISM": "SCRAM-SHA-512",
        "SASL_USERNAME": MINT,
        "SASL_PASSWORD": PASSWORDS[MINT],
        "SSL_CA_FILE": os.fspath(broker.ca_file),
    }
    for name, value in given.items():
        monkeypatch.setenv(f"MINT_KAFKA__{name}", value)
    settings = Settings.load()
    assert connection_from(settings) == wanted
    assert PASSWORDS[MINT] not in f"{settings!r} {wanted!r}"
    async with Client(settings) as client:
        assert await client.jobs() == ()
