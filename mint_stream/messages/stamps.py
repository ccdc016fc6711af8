"""What every command to the registrar carries, and every event of it."""

from mint_stream.messages.record import Record
from mint_stream.messages.shared import CatalogPosition, EpochMs, Id, Name


class CommandStamp(Record):
    """Which command this is, of which adapter."""

    command_id: Id
    """The idempotency key: repeated, it is answered with the first one's outcome. A rejected command changed nothing and is judged anew."""
    adapter_id: Name
    issued_at_ms: EpochMs


class EventStamp(Record):
    """What it is the answer to, of which adapter, and when."""

    command_id: Id
    adapter_id: Name
    at_ms: EpochMs
    catalog_position: CatalogPosition | None = None
    """Where the head's record of this change stands; None when the command was rejected."""
