"""A broker of its own with a second listener for strangers: TLS under an authority made here, SCRAM-SHA-512, and rules on who may do what.

with secured_kafka(directory) as broker:   MINT may do everything, READER reads, joins groups and writes to MINE, NOBODY only gets in
broker.connection(MINT)                    through TLS and SASL, verified against broker.ca_file
"""

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mint_stream.bus.connection import Connection
from mint_stream.bus.local_kafka import LocalKafka

MINE = "mine"
MINT, READER, NOBODY = "mint", "reader", "nobody"
PASSWORDS = {MINT: "a password: with signs", READER: "another", NOBODY: "a third"}
MECHANISM = "SCRAM-SHA-512"

_TOPIC, _GROUP = 2, 3
_READ, _WRITE = 3, 4
_CREATE_ACLS, _LITERAL, _ALLOW = 30, 3, 3
_LISTENER = "listener.name.secured"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@dataclass(frozen=True)
class SecuredKafka:
    """The running broker: where strangers connect, and the certificate they have to trust."""

    kafka: LocalKafka
    port: int
    ca_file: Path

    def connection(self, user: str, password: str | None = None, ca_file: Path | None = None) -> Connection:
        """As one of our roles would reach it."""
        return Connection(
            f"127.0.0.1:{self.port}",
            security_protocol="SASL_SSL",
            sasl_mechanism=MECHANISM,
            sasl_username=user,
            sasl_password=PASSWORDS[user] if password is None else password,
            ssl_ca_file=str(ca_file or self.ca_file),
        )


def allow(kafka: LocalKafka, user: str, kind: int, operation: int, name: str = "*") -> None:
    """A rule for a topic or group, or for all. Kafka's own tool is not in the broker's jars, so CreateAcls (version 1) is spoken here."""
    rule = _text(name) + struct.pack(">b", _LITERAL) + _text(f"User:{user}") + _text("*") + struct.pack(">bb", operation, _ALLOW)
    request = struct.pack(">hhih", _CREATE_ACLS, 1, 1, -1) + struct.pack(">ib", 1, kind) + rule
    with socket.create_connection(("127.0.0.1", kafka.port), timeout=10) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        _size, _correlation, _throttle, count, error = struct.unpack(">iiiih", connection.makefile("rb").read(18))
    assert (count, error) == (1, 0), f"CreateAcls answered {error}"


@contextmanager
def secured_kafka(directory: Path) -> Iterator[SecuredKafka]:
    """Make certificates, format with both users, start, and let READER read."""
    directory.mkdir()
    port, inner, controller = _free_ports(3)
    ca_file, server_file = make_certificates(directory)
    properties = {
        "listeners": f"PLAINTEXT://127.0.0.1:{inner},SECURED://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURED:SASL_SSL",
        f"{_LISTENER}.sasl.enabled.mechanisms": MECHANISM,
        f"{_LISTENER}.scram-sha-512.sasl.jaas.config": _SCRAM,
        f"{_LISTENER}.ssl.keystore.type": "PEM",
        f"{_LISTENER}.ssl.keystore.location": str(server_file),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:ANONYMOUS;User:{MINT}",
    }
    users = [f"--add-scram={MECHANISM}=[name={user},password={password}]" for user, password in PASSWORDS.items()]
    with LocalKafka(directory / "kafka", inner, 384, controller, properties, format_arguments=users) as kafka:
        for kind in (_TOPIC, _GROUP):
            allow(kafka, READER, kind, _READ)
        allow(kafka, READER, _TOPIC, _WRITE, MINE)
        yield SecuredKafka(kafka, port, ca_file)


def make_certificates(directory: Path) -> tuple[Path, Path]:
    """An authority's certificate, and one PEM file with a server's key and the certificate the authority gave it for 127.0.0.1."""
    ca, key, server = (directory / name for name in ("ca.pem", "server.key", "server.pem"))
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    _run(*new, "-subj", "/CN=test authority", "-keyout", str(directory / "ca.key"), "-out", str(ca))
    signed_by = ["-CA", str(ca), "-CAkey", str(directory / "ca.key")]
    about = ["-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    _run(*new, *about, *signed_by, "-keyout", str(key), "-out", str(server))
    server.write_text(key.read_text() + server.read_text())
    return ca, server


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
