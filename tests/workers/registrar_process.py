"""A registrar in a process of its own that ends itself with kill -9 right after its first effect of a kind, or stops there until it is
told to continue. Run by test_registrar and test_registrar_more.

python -m tests.workers.registrar_process BOOTSTRAP PREFIX EFFECT CATALOG_DIRECTORY [SIGKILL|SIGSTOP]
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Outgoing, RecordPosition
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.catalog import Catalog, Entry
from tests.registrar_ground import Ground

SESSION_S = 6.0
"""The shortest that the broker allows."""


class MortalProducer(TransactionalProducer):
    """Dies after the first effect of one kind, once the broker has acknowledged it."""

    def __init__(self, last: str, connection: Connection, transactional_id: str) -> None:
        super().__init__(connection, transactional_id, "test", timeout_s=60)  # longer than any test: only fencing ends what it left open
        self._last = last

    async def begin(self) -> None:
        await super().begin()
        die(self._last == "begin")

    async def send_raw(self, record: Outgoing) -> asyncio.Future[Any]:
        future = await super().send_raw(record)
        if kind(record) == self._last:
            await future
            die(True)
        return future

    async def send_offsets(self, offsets: Mapping[tuple[str, int], int], group: str) -> None:
        await super().send_offsets(offsets, group)
        die(self._last == "offsets")

    async def commit(self) -> tuple[RecordPosition, ...]:
        positions = await super().commit()
        die(self._last == "commit")
        return positions


class MortalCatalog(Catalog):
    """Dies after the local copy of what was committed, not after the fold that came before."""

    def __init__(self, last: str, path: Path, partitions: int) -> None:
        super().__init__(path, partitions)
        self._last = last

    def apply(self, partition: int, records: Sequence[Any], next_offset: int) -> None:
        super().apply(partition, records, next_offset)
        die(self._last == "copy" and any(isinstance(record, Entry) for record in records))


def kind(record: Outgoing) -> str:
    if record.topic.endswith("-revisions"):
        return "head" if (record.key or b"").endswith(b"/head") else "revision"
    return "event"


struck: list[str] = []
"""By which signal: once is enough."""


def die(now: bool) -> None:
    if now and not struck:
        struck.append(sys.argv[5] if len(sys.argv) > 5 else "SIGKILL")
        say(struck[0])
        os.kill(os.getpid(), signal.Signals[struck[0]])


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(bootstrap: str, prefix: str, last: str, path: str, *_: str) -> None:
    connection = Connection(bootstrap)
    ground = Ground.named(connection, prefix)
    catalog = MortalCatalog(last, Path(path), ground.topics.partitions)
    registrar = ground.build(
        catalog, lambda partition: MortalProducer(last, connection, f"{prefix}-{partition}"), member="one", session_timeout_s=SESSION_S
    )
    await registrar.start()
    say("started")
    await registrar.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
