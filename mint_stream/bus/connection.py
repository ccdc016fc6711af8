"""How to reach a Kafka cluster: one value that every client of this package is made from, and what to say when it is not let in."""

import ssl
from dataclasses import dataclass
from typing import Any

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.helpers import create_ssl_context

from mint_stream.errors import AccessRefused, BusUnavailable, InvalidSettings, MintError

FORBIDDEN = (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
"""A person has to give the user the right to it."""


@dataclass(frozen=True)
class Connection:
    """Where the brokers are and how to talk to them. Passwords are kept out of `repr`."""

    bootstrap_servers: str
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: str | None = None
    ssl_ca_file: str | None = None

    def options(self) -> dict[str, Any]:
        """Keyword arguments that any aiokafka client takes. Raises InvalidSettings for a certificate file that cannot be read."""
        return {"bootstrap_servers": self.bootstrap_servers, "security_protocol": self.security_protocol, **self._ssl(), **self._sasl()}

    def _ssl(self) -> dict[str, Any]:
        if not self.security_protocol.endswith("SSL"):
            return {}
        try:
            return {"ssl_context": create_ssl_context(cafile=self.ssl_ca_file)}
        except OSError as error:
            raise InvalidSettings(f"MINT_KAFKA__SSL_CA_FILE: no certificates can be read from {self.ssl_ca_file}: {error}") from error

    def _sasl(self) -> dict[str, Any]:
        if self.sasl_mechanism is None:
            return {}
        return {
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": self.sasl_password,
        }

    def __repr__(self) -> str:
        return f"Connection({self.bootstrap_servers!r}, {self.security_protocol!r})"


async def failure(connection: Connection, what: str, error: BaseException) -> MintError:
    """The typed error for a client's: AccessRefused where a person has to change an account or a right, BusUnavailable otherwise.

    aiokafka keeps for itself why no broker took a connection, so one more is made to learn it."""
    if isinstance(error, FORBIDDEN) or isinstance(error.__cause__, FORBIDDEN):
        return AccessRefused(f"{what}: Kafka does not let user {connection.sasl_username} do this: {error!r}")
    reason = await _refusal(connection) if isinstance(error, KafkaConnectionError) else None
    return AccessRefused(f"{what}: {reason}") if reason else BusUnavailable(f"{what}: {error!r}")


async def _refusal(connection: Connection) -> str | None:
    """What a broker has against us; None when none says anything."""
    options = connection.options()
    for host, port, _ in collect_hosts(options.pop("bootstrap_servers")):
        try:
            (await create_conn(host, port, **options)).close()
        except (SaslAuthenticationFailed, UnsupportedSaslMechanismError) as error:
            return f"{host}:{port} refuses user {connection.sasl_username}: {error}; check the MINT_KAFKA__SASL_ settings"
        except ssl.SSLError as error:
            return f"no TLS with {host}:{port}: {error}; check MINT_KAFKA__SSL_CA_FILE and MINT_KAFKA__SECURITY_PROTOCOL"
        except (OSError, TimeoutError, KafkaError):
            continue
    return None
