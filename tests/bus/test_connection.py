"""A connection: what every client is made from, and what is said when nobody lets it in."""

import asyncio
import ssl
from pathlib import Path

import pytest
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)

from mint_stream.bus.connection import Connection, failure
from mint_stream.client.connect import connection_from
from mint_stream.errors import AccessRefused, BusUnavailable, InvalidSettings
from mint_stream.settings import Settings

NOBODY = Connection("127.0.0.1:9", sasl_username="ann")


def test_without_security_there_are_only_the_servers() -> None:
    assert Connection("a:1,b:2").options() == {"bootstrap_servers": "a:1,b:2", "security_protocol": "PLAINTEXT"}


def test_with_a_password_every_client_gets_it_and_nobody_prints_it() -> None:
    connection = Connection("a:1", "SASL_PLAINTEXT", "SCRAM-SHA-512", "ann", "hunter2")
    options = connection.options()
    assert (options["sasl_mechanism"], options["sasl_plain_username"], options["sasl_plain_password"]) == (
        "SCRAM-SHA-512",
        "ann",
        "hunter2",
    )
    assert "ssl_context" not in options
    assert "hunter2" not in repr(connection) + str(connection) + f"{connection}"


@pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL"])
def test_tls_checks_who_answers(protocol: str) -> None:
    context = Connection("a:1", protocol).options()["ssl_context"]
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidSettings, match=rf"MINT_KAFKA__SSL_CA_FILE: no certificates can be read from {path}"):
        Connection("a:1", "SSL", ssl_ca_file=str(path)).options()


@pytest.mark.parametrize(
    "error", [TopicAuthorizationFailedError("t"), GroupAuthorizationFailedError("g"), TransactionalIdAuthorizationFailed("x")]
)
async def test_a_right_that_is_missing_names_who_misses_it(error: Exception) -> None:
    found = await failure(NOBODY, "cannot write", error)
    assert isinstance(found, AccessRefused)
    assert str(found).startswith("cannot write: Kafka does not let user ann do this: ")


async def test_a_right_that_is_missing_is_found_beneath_another_error() -> None:
    outer = KafkaConnectionError("outer")
    outer.__cause__ = TopicAuthorizationFailedError("t")
    assert isinstance(await failure(NOBODY, "x", outer), AccessRefused)


@pytest.mark.parametrize("error", [KafkaTimeoutError("slow"), KafkaConnectionError("gone")])
async def test_whatever_else_happens_may_pass(error: Exception) -> None:
    found = await failure(NOBODY, "cannot read topic t", error)
    assert isinstance(found, BusUnavailable)
    assert str(found) == f"cannot read topic t: {error!r}"


async def test_who_does_not_speak_tls_to_us_is_named() -> None:
    """A plain listener where TLS was asked for."""

    async def plain(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is no TLS at all\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    found = await failure(Connection(f"127.0.0.1:{port}", "SSL"), "cannot connect", KafkaConnectionError("x"))
    server.close()
    await server.wait_closed()
    assert isinstance(found, AccessRefused)
    assert str(found).startswith(f"cannot connect: no TLS with 127.0.0.1:{port}: ") and "MINT_KAFKA__SECURITY_PROTOCOL" in str(found)


def test_a_connection_is_made_from_whatever_a_caller_has() -> None:
    connection = Connection("a:1", "SSL")
    assert connection_from(connection) is connection
    assert connection_from("a:1,b:2") == Connection("a:1,b:2")
    assert connection_from(Settings.load()) == Connection("127.0.0.1:9092")
    assert connection_from(Settings.load(kafka={"port": 1234})) == Connection("127.0.0.1:1234")


def test_every_setting_of_kafka_reaches_the_connection() -> None:
    kafka = {
        "bootstrap_servers": "a:1",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_username": "u",
        "sasl_password": "p",
        "ssl_ca_file": "/ca.pem",
    }
    assert connection_from(Settings.load(kafka=kafka)) == Connection("a:1", "SASL_SSL", "PLAIN", "u", "p", "/ca.pem")
