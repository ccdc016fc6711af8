"""`mint-stream kafka`: the embedded broker in the foreground."""

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from mint_stream.cli.options import Home, settings_from

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where the log lives; overrides MINT_KAFKA__DATA_DIR.")]
Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="0 picks a free one; overrides MINT_KAFKA__PORT.")]


def kafka(data_dir: DataDir = None, port: Port = None, home: Home = None) -> None:
    """A real Apache Kafka on this machine, until Ctrl-C. The first start fetches it; what was acknowledged survives a crash."""
    from mint_stream.bus.local_kafka import LocalKafka
    from mint_stream.errors import BrokerFailed

    settings = settings_from(home=home)
    own_port = settings.kafka.port if port is None else port
    broker = LocalKafka((data_dir or settings.kafka_dir), own_port, settings.kafka.heap_mib)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with broker:
            typer.echo(f"Kafka {broker.version} serves at {broker.bootstrap_servers} (process {broker.pid}, log {broker.log_path})")
            broker.wait()
            raise BrokerFailed(f"Kafka ended by itself; see {broker.log_path}")
    except KeyboardInterrupt:
        typer.echo("Kafka stopped")


def _interrupt(*_: Any) -> None:
    """SIGTERM stops as cleanly as Ctrl-C."""
    raise KeyboardInterrupt
