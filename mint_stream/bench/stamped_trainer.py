"""The train role as it is, which also writes down when it did what: `python -m mint_stream.bench.stamped_trainer FILE`."""

import asyncio
import sys
from pathlib import Path

from mint_stream.app import logs
from mint_stream.app.shell import Shell
from mint_stream.app.train import TrainRole
from mint_stream.app.workplace import Workplace
from mint_stream.bench.stamps import stamping
from mint_stream.client.connect import connection_from
from mint_stream.metrics import Metrics
from mint_stream.settings import Settings


async def run(settings: Settings, stamps: Path) -> None:
    """Train until told to stop. Raises a Stop that says what a person has to change."""
    logs.configure(settings.log_json)
    connection, metrics = connection_from(settings), Metrics()
    with Workplace(settings.home, "train", settings.worker_id) as workplace:
        role = TrainRole(settings, connection, metrics, workplace, stamping(stamps))
        await Shell((role,), connection, metrics).serve(settings.http)


if __name__ == "__main__":
    asyncio.run(run(Settings.load(), Path(sys.argv[1])))
