"""Every trial that runs now: a fold of `adapter-revisions` that keeps only the heads with a trial in them."""

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from mint_stream.bus.table import LogRecord
from mint_stream.catalog.aliases import PRODUCTION
from mint_stream.errors import InvalidRecord
from mint_stream.messages.adapters import Head
from mint_stream.messages.gates import GateTerms, Trial
from mint_stream.messages.shared import CatalogPosition

log = logging.getLogger(__name__)

_MARK = b'"trial"'
"""In the bytes of every head with a trial. A million heads without one are passed over without reading their JSON."""

TrialKey = tuple[str, str, int | None]
"""What a measurement is good for: trial, phase, and at the gate the production that the candidate is compared with."""


@dataclass(frozen=True)
class OpenTrial:
    """A trial as its adapter's head has it."""

    adapter_id: str
    pool: str
    trial: Trial
    gate: GateTerms
    production: int | None
    position: CatalogPosition
    """Where the head stands: whoever has applied that knows both revisions."""

    @property
    def name(self) -> str:
        """Short enough to be part of other ids, and no other trial's: the first half of a sha256."""
        return hashlib.sha256(f"{self.adapter_id}/{self.trial.trial_id}".encode()).hexdigest()[:32]

    @property
    def key(self) -> TrialKey:
        """See TrialKey."""
        return self.trial.trial_id, self.trial.phase, self.production if self.trial.phase == "gate" else None


class OpenTrials:
    """The open trials by partition. Law: it depends only on the last record of each head."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._open: dict[int, dict[bytes, OpenTrial]] = {}

    def apply(self, partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        """Take in records of `adapter-revisions`."""
        here = self._open.setdefault(partition, {})
        before = dict(here)
        for record in records:
            key = record.key or b""
            if key.endswith(b"/head"):
                here.pop(key, None)
                if (found := _trial_in(partition, record)) is not None:
                    here[key] = found
        if here != before:
            self._changed()

    def within(self, partitions: Collection[int]) -> Mapping[TrialKey, OpenTrial]:
        """The open trials of adapters in these partitions."""
        return {found.key: found for partition in partitions for found in self._open.get(partition, {}).values()}


def _trial_in(partition: int, record: LogRecord) -> OpenTrial | None:
    if not record.value or _MARK not in record.value:
        return None
    try:
        head = Head.decode(record.value)
    except InvalidRecord as error:
        log.warning("adapter-revisions %d:%d passed over: %s", partition, record.offset, error)
        return None
    if head.trial is None or head.gate is None:
        return None
    position = CatalogPosition(partition=partition, offset=record.offset)
    return OpenTrial(head.adapter_id, head.pool, head.trial, head.gate, head.aliases.get(PRODUCTION), position)
