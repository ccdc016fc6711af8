"""A catalog's copy in a process of its own that ends itself with kill -9 amid its n-th record. Run by test_replay.

python -m tests.app.replay_process BOOTSTRAP DIRECTORY RECORDS_TO_LIVE
"""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mint_stream import contracts
from mint_stream.app.catalog_copy import current_catalog
from mint_stream.bus.connection import Connection
from mint_stream.catalog import Catalog

PIECE = 40
"""Records in a transaction."""


class Deadly(list[Any]):
    """Records that are not all lived to see."""

    left = 0

    def __iter__(self) -> Iterator[Any]:
        for record in super().__iter__():
            Deadly.left -= 1
            if not Deadly.left:
                os.kill(os.getpid(), signal.SIGKILL)
            yield record


class MortalCatalog(Catalog):
    """Folds a few records a transaction, so that there is much to be killed between and amid."""

    def apply_all(self, batches: Sequence[tuple[int, Sequence[Any], int]]) -> None:
        for partition, records, next_offset in batches:
            for start in range(0, len(records), PIECE):
                piece = Deadly(records[start : start + PIECE])
                super().apply_all([(partition, piece, piece[-1].offset + 1)])
            super().apply_all([(partition, (), next_offset)])


async def main(bootstrap: str, directory: str, records_to_live: str) -> None:
    Deadly.left = int(records_to_live)
    with Catalog(Path(directory), contracts.ADAPTER_REVISIONS.partitions) as known:
        sys.stdout.write(f"{len(known)}\n")
        sys.stdout.flush()
    async with current_catalog(Connection(bootstrap), Path(directory), contracts.ADAPTER_REVISIONS, MortalCatalog):
        pass


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
