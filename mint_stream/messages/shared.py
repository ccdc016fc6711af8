"""Small values that several record families carry."""

from typing import Annotated, Self

from pydantic import Field, StringConstraints

from mint_stream.errors import MintError
from mint_stream.messages.record import Record

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}$")]
"""An adapter_id, alias, pool or tenant: letters, digits, dot, underscore, dash; at most 128 characters."""

Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]
"""A request_id, job_id, command_id, worker_id or batch_id chosen by whoever creates the thing."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A sha256 in hex."""

EpochMs = Annotated[int, Field(ge=0)]
"""Milliseconds since 1970-01-01 UTC."""


Reason = Annotated[str, StringConstraints(max_length=1000)]
"""Why somebody asked for something, in their words. It is told to others, so it has to fit into what they are told by."""

MESSAGE_CHARACTERS = 4096
"""What an error tells at most: it quotes what it was given, and must fit into a record whatever that was."""


class CatalogPosition(Record):
    """A place in the `adapter-revisions` log. A reader that applied this offset of this partition has seen the change."""

    partition: int = Field(ge=0)
    offset: int = Field(ge=0)


class ErrorBody(Record):
    """Why something was refused or failed: the code of `mint_stream.errors` and a sentence."""

    code: str
    message: str

    @classmethod
    def of(cls, error: MintError) -> Self:
        """The body of an error, its sentence cut after MESSAGE_CHARACTERS."""
        whole = str(error)
        return cls(code=error.code, message=whole if len(whole) <= MESSAGE_CHARACTERS else f"{whole[: MESSAGE_CHARACTERS - 1]}…")


class TargetShape(Record):
    """LoRA-able layers of one kind: `pattern` is a module path with every layer index written `*`."""

    pattern: str
    in_features: int = Field(gt=0)
    out_features: int = Field(gt=0)
    count: int = Field(gt=0)
    rank: int = Field(default=0, ge=0)
    """0 in a base-models record; the adapter's rank in a manifest."""
