"""Quarantine: a worker that finds a revision unservable says so once, and the registrar takes production back."""

import logging

from mint_stream import contracts
from mint_stream.bus.producer import Producer
from mint_stream.errors import AdapterUnloadable, BusUnavailable, CorruptObject, InvalidAdapter, MintError
from mint_stream.messages.adapters import Quarantine, Revision
from mint_stream.messages.shared import ErrorBody
from mint_stream.workers.clock import now_ms

log = logging.getLogger(__name__)

UNSERVABLE = (AdapterUnloadable, CorruptObject, InvalidAdapter)
"""Errors that will come again wherever the revision is loaded."""


class QuarantineReports:
    """Sends each revision's quarantine command once; the command_id makes the fleet's reports one."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._reported: set[tuple[str, int]] = set()

    async def report(self, revision: Revision, error: MintError) -> None:
        """Tell the registrar if `error` means that the revision cannot be served anywhere."""
        key = (revision.adapter_id, revision.number)
        if not isinstance(error, UNSERVABLE) or key in self._reported:
            return
        command = Quarantine(
            command_id=f"quarantine-{revision.adapter_id}@{revision.number}",
            adapter_id=revision.adapter_id,
            issued_at_ms=now_ms(),
            number=revision.number,
            reason=f"{error.code}: {ErrorBody.of(error).message}",
        )
        self._reported.add(key)
        try:
            await self._producer.publish(contracts.ADAPTER_COMMANDS, command, revision.adapter_id)
        except BusUnavailable as failure:
            self._reported.discard(key)
            log.warning("quarantine of %s@%d not sent: %s; the next request that fails sends it", *key, failure)
