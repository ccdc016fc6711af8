"""Where a revision comes from: what has to be known to make its weights again."""

from typing import Annotated

from pydantic import Field, StringConstraints

from mint_stream.messages.record import Record
from mint_stream.messages.shared import Digest


class Lineage(Record):
    """Of a revision that a job made; parent, job and step stand beside it in the revision's own record.

    The same job, read from `job_uri`, on the same data with the same parent, code and numeric fingerprint gives the same digest."""

    job_uri: Annotated[str, StringConstraints(max_length=4096)]
    """The job's record in the store, under the digest of what it asks for."""
    dataset_digest: Digest
    """sha256 of the bytes that `dataset_uri` of the job had."""
    seed: int = Field(ge=0, lt=2**63)
    code_version: Annotated[str, StringConstraints(max_length=128)]
    """The package's version, and a digest of the modules that training runs through."""
    numeric_fingerprint: Digest
