"""From what a caller has in hand to a Kafka connection."""

from mint_stream.bus.connection import Connection
from mint_stream.settings import Settings


def connection_from(source: Settings | Connection | str) -> Connection:
    """A connection as it is, to bootstrap servers without authentication, or to what the settings say."""
    if isinstance(source, Connection):
        return source
    if isinstance(source, str):
        return Connection(source)
    return _connection_of(source)


def _connection_of(settings: Settings) -> Connection:
    kafka = settings.kafka
    return Connection(
        bootstrap_servers=kafka.bootstrap_servers or f"127.0.0.1:{kafka.port}",
        security_protocol=kafka.security_protocol,
        sasl_mechanism=kafka.sasl_mechanism,
        sasl_username=kafka.sasl_username,
        sasl_password=kafka.sasl_password,
        ssl_ca_file=kafka.ssl_ca_file,
    )
