"""Founding a pool: the first serving worker of a pool says which base it runs; every later one must run the same."""

import logging
from collections.abc import Sequence

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.errors import BaseConflict, InvalidRecord
from mint_stream.messages.fleet import PoolBase

log = logging.getLogger(__name__)


class PoolBases:
    """All records of `base-models`: the first of a pool counts, whoever wrote later."""

    def __init__(self) -> None:
        self.first: dict[str, PoolBase] = {}
        self.last: dict[str, PoolBase] = {}

    def apply(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        """Take in records of `base-models`."""
        for record in records:
            try:
                base = PoolBase.decode(record.value)
            except InvalidRecord as error:
                log.warning("base-models offset=%d passed over: %s", record.offset, error)
                continue
            self.first.setdefault(base.pool, base)
            self.last[base.pool] = base


async def found_pool(connection: Connection, producer: Producer, base: PoolBase) -> PoolBase:
    """Make `base` its pool's, or agree that it is already; gives the founder's record, whose caps hold for the whole pool.

    Raises BaseConflict when the pool runs another one.
    """
    if base.pool not in (await _read(connection)).first:
        await producer.publish(contracts.BASE_MODELS, base, base.pool)
    bases = await _read(connection)
    founder = bases.first[base.pool]
    if bases.last[base.pool].base_digest != founder.base_digest:
        await producer.publish(contracts.BASE_MODELS, founder, base.pool)  # else compaction would keep the loser's record
    if founder.base_digest != base.base_digest:
        raise BaseConflict(
            f"pool {base.pool!r} runs base {founder.base_digest[:12]} and this worker has {base.base_digest[:12]}: "
            "load the same base, or set MINT_POOL to a pool of its own"
        )
    return founder


async def _read(connection: Connection) -> PoolBases:
    bases = PoolBases()
    reader = LogReader(connection, contracts.BASE_MODELS.name(), bases.apply)
    await reader.start()
    try:
        await reader.caught_up()
    finally:
        await reader.stop()
    return bases
