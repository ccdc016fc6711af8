"""Adapters: the manifest of a revision, commands to the registrar, the catalog's records, and the events of the history."""

import zlib
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, TypeAdapter

from mint_stream.messages.gates import CandidateJudged, GateTerms, Judge, Trial, TrialBegun, TrialEnded
from mint_stream.messages.lineage import Lineage
from mint_stream.messages.record import Record, decode_one
from mint_stream.messages.shared import CatalogPosition, Digest, EpochMs, Id, Name, TargetShape
from mint_stream.messages.stamps import CommandStamp, EventStamp

PromotionRule = Literal["auto", "manual", "gated"]
"""auto: an announce moves production; manual: a person does; gated: the evaluate role decides."""

RevisionNumber = Annotated[int, Field(ge=1)]

Spread = Annotated[int, Field(ge=1, le=1024)]
"""Over how many partitions an adapter's requests are laid; see `bus.routing`. More than the topic has means all."""

SPENT_PREFIX = b"~spent/"
SpentBucket = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,3}$")]
_SPENT_BUCKETS = 0x1000
"""Of each partition. All of them full, a SpentNumbers record has about 40 KiB."""


class FileEntry(Record):
    """One immutable file of a revision."""

    name: str
    size_bytes: int = Field(ge=0)
    sha256: Digest


class Manifest(Record):
    """What a revision consists of. Written last, so an object prefix with a manifest is whole."""

    digest: Digest
    """sha256 over canonical config JSON and sorted tensor bytes: the identity of what the adapter computes."""
    uri: str
    files: tuple[FileEntry, ...] = Field(min_length=1)
    base_digest: Digest
    targets: tuple[TargetShape, ...] = Field(min_length=1)
    """What it adapts, with ranks; checked against the pool's base-models record without reading weights."""
    parameters: int = Field(gt=0)
    numeric_fingerprint: str | None = None
    metrics: dict[str, float] = {}

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max(target.rank for target in self.targets)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.size_bytes for file in self.files)


class Claim(CommandStamp):
    """Take the adapter for a training job. Granted when `expected_attempt` is the current attempt plus one."""

    type: Literal["claim"] = "claim"
    job_id: Id
    pool: Name
    expected_attempt: int = Field(ge=1)


class Announce(CommandStamp):
    """Make uploaded files a revision. A job's announce must match the current claim; an import carries no job."""

    type: Literal["announce"] = "announce"
    pool: Name
    manifest: Manifest
    parent: RevisionNumber | None = None
    job_id: Id | None = None
    attempt: int | None = Field(default=None, ge=1)
    step: int | None = Field(default=None, ge=0)
    lineage: Lineage | None = None
    """Of a job's revision; an import has none."""
    promotion: PromotionRule | None = None
    """The rule of an adapter that has no revision yet (None: auto). Later ones change nothing: a person's roll-back to `manual` holds."""


class Promote(CommandStamp):
    """Point an alias at a revision."""

    type: Literal["promote"] = "promote"
    number: RevisionNumber
    alias: Name = "production"
    expected_position: CatalogPosition | None = None
    """Refuse unless the adapter's head still stands at this position."""


class RollBack(CommandStamp):
    """Point production back at `previous`, and set the rule to manual so the next publish cannot undo it."""

    type: Literal["roll-back"] = "roll-back"
    expected_position: CatalogPosition | None = None


class Quarantine(CommandStamp):
    """A worker found that a revision cannot be loaded or computes non-finite numbers."""

    type: Literal["quarantine"] = "quarantine"
    number: RevisionNumber
    reason: str


class Retire(CommandStamp):
    """Stop serving a revision. Its record shrinks to a stub, so the number is never reused."""

    type: Literal["retire"] = "retire"
    number: RevisionNumber


class SetRule(CommandStamp):
    """Choose what an announce does to production."""

    type: Literal["set-rule"] = "set-rule"
    rule: PromotionRule
    gate: GateTerms | None = None
    """With `gated`: what a candidate has to show. None: what it had to show before; without any, nothing is ever promoted by a gate."""


class Canary(Record):
    """A revision that a share of the requests for production is answered by."""

    number: RevisionNumber
    share_basis_points: int = Field(ge=1, le=10_000)
    """In 1/10,000 of the requests: 500 is 5 %. Which ones is a matter of their names, see `catalog.canary`."""


class SetCanary(CommandStamp):
    """Answer a share of the requests for production by another revision, or with None by production alone again."""

    type: Literal["set-canary"] = "set-canary"
    canary: Canary | None = None
    expected_position: CatalogPosition | None = None


class Delete(CommandStamp):
    """End an adapter: every record of it leaves the catalog, and only the history of `adapter-events` is left.

    Repeated, it is refused, for there is nothing left that could remember it."""

    type: Literal["delete"] = "delete"
    expected_position: CatalogPosition
    """Where the adapter's head stands that is meant: one deleted and made anew under the same name meanwhile is another adapter."""
    force: bool = False
    """Also while production points at a revision or a training job has claimed the adapter."""


class SetSpread(CommandStamp):
    """Lay the adapter's requests over more partitions than one, so that several workers serve it; 1 takes that back."""

    type: Literal["set-spread"] = "set-spread"
    spread: Spread


AdapterCommand = Claim | Announce | Promote | RollBack | Quarantine | Retire | SetRule | SetCanary | Delete | Judge | SetSpread
_COMMANDS: TypeAdapter[AdapterCommand] = TypeAdapter(Annotated[AdapterCommand, Field(discriminator="type")])


def decode_command(value: bytes | None) -> AdapterCommand:
    """The command in a record of `adapter-commands`. Raises InvalidRecord."""
    return decode_one(_COMMANDS, value, "adapter command")


RevisionState = Literal["announced", "quarantined", "retired"]


class Revision(Record):
    """One immutable servable state of an adapter: the catalog's record at key `adapter_id/number`."""

    adapter_id: Name
    number: RevisionNumber
    state: RevisionState
    digest: Digest
    pool: Name
    uri: str | None = None
    """None once retired."""
    base_digest: Digest | None = None
    rank: int | None = None
    size_bytes: int | None = None
    parent: RevisionNumber | None = None
    job_id: Id | None = None
    step: int | None = None
    lineage: Lineage | None = None
    announced_at_ms: EpochMs
    reason: str | None = None
    metrics: dict[str, float] = {}


class CurrentClaim(Record):
    """Which job may announce to an adapter, and under which attempt."""

    job_id: Id
    attempt: int = Field(ge=1)


class RememberedCommand(Record):
    """A command the registrar has carried out, so that its repetition changes nothing."""

    command_id: Id
    number: RevisionNumber | None = None
    """The revision it was about."""
    attempt: int | None = None
    """The attempt it granted."""


class Head(Record):
    """The mutable half of an adapter: the catalog's record at key `adapter_id/head`, written last in every transaction."""

    adapter_id: Name
    pool: Name
    first_number: RevisionNumber = 1
    """Its numbers begin here; above 1 when adapters before it were deleted."""
    next_number: RevisionNumber = 1
    aliases: dict[Name, RevisionNumber] = {}
    rule: PromotionRule = "auto"
    canary: Canary | None = None
    """Always another revision than production's, and an announced one."""
    spread: Spread = 1
    gate: GateTerms | None = None
    """What the rule `gated` asks of a candidate."""
    trial: Trial | None = None
    """The candidate that is on its way to production now."""
    tried: int = Field(default=0, ge=0)
    """The last revision that had a trial under this rule."""
    attempt: int = Field(default=0, ge=0)
    """The highest attempt ever granted."""
    claim: CurrentClaim | None = None
    commands: tuple[RememberedCommand, ...] = ()


class SpentNumbers(Record):
    """The catalog's record at key `~spent/partition`: which numbers deleted adapters had, so that nobody under their names has them again.

    It names no adapter. A name's bucket is shared with others, whose numbers then begin higher than they would have to."""

    next_numbers: dict[SpentBucket, RevisionNumber]
    """By bucket of the adapter_id, the lowest number that no deleted adapter had."""

    def first_number(self, adapter_id: str) -> int:
        """Where the numbers of an adapter of this name begin that is made now."""
        return self.next_numbers.get(_bucket(adapter_id), 1)

    def after(self, adapter_id: str, next_number: int) -> Self:
        """With the numbers below `next_number` of this adapter spent."""
        beginning = max(next_number, self.first_number(adapter_id))
        return self.model_copy(update={"next_numbers": {**self.next_numbers, _bucket(adapter_id): beginning}})


def _bucket(adapter_id: str) -> str:
    return f"{zlib.crc32(adapter_id.encode()) % _SPENT_BUCKETS:x}"


class ClaimGranted(EventStamp):
    """A job may work on the adapter under `attempt`."""

    type: Literal["claim-granted"] = "claim-granted"
    job_id: Id
    attempt: int


class RevisionAnnounced(EventStamp):
    """A new revision is in the catalog."""

    type: Literal["revision-announced"] = "revision-announced"
    number: RevisionNumber
    digest: Digest
    pool: Name
    job_id: Id | None = None
    step: int | None = None


class AliasMoved(EventStamp):
    """An alias points elsewhere. `number` None: the alias is gone."""

    type: Literal["alias-moved"] = "alias-moved"
    alias: Name
    number: RevisionNumber | None = None
    previous_number: RevisionNumber | None = None
    cause: Literal["announce", "promote", "roll-back", "quarantine", "retire", "judge"]


class RevisionQuarantined(EventStamp):
    """A revision was found unservable."""

    type: Literal["revision-quarantined"] = "revision-quarantined"
    number: RevisionNumber
    reason: str


class RevisionRetired(EventStamp):
    """A revision is not served any more."""

    type: Literal["revision-retired"] = "revision-retired"
    number: RevisionNumber


class RuleSet(EventStamp):
    """The adapter's promotion rule changed."""

    type: Literal["rule-set"] = "rule-set"
    rule: PromotionRule
    gate: GateTerms | None = None


class CanarySet(EventStamp):
    """The share of production's requests that another revision answers changed. `canary` None: it ended."""

    type: Literal["canary-set"] = "canary-set"
    canary: Canary | None = None
    previous: Canary | None = None


class AdapterDeleted(EventStamp):
    """The adapter is gone. `catalog_position` is where its head's tombstone stands."""

    type: Literal["adapter-deleted"] = "adapter-deleted"
    next_number: RevisionNumber
    """An adapter made later under this name begins here, or higher."""


class SpreadSet(EventStamp):
    """The adapter's requests are laid over another number of partitions."""

    type: Literal["spread-set"] = "spread-set"
    spread: Spread


class CommandRepeated(EventStamp):
    """A command_id (or a job's step) was seen before: `number` and `attempt` are its outcome of then, the position is the head's of now."""

    type: Literal["command-repeated"] = "command-repeated"
    number: RevisionNumber | None = None
    attempt: int | None = None


class CommandRejectedEvent(EventStamp):
    """The registrar refused a command, and why."""

    type: Literal["command-rejected"] = "command-rejected"
    command: str
    reason: str
    current_attempt: int | None = None
    """With a refused claim: the attempt it lost to."""


AdapterEvent = (
    ClaimGranted
    | RevisionAnnounced
    | AliasMoved
    | RevisionQuarantined
    | RevisionRetired
    | RuleSet
    | CanarySet
    | SpreadSet
    | AdapterDeleted
    | TrialBegun
    | CandidateJudged
    | TrialEnded
    | CommandRepeated
    | CommandRejectedEvent
)
_EVENTS: TypeAdapter[AdapterEvent] = TypeAdapter(Annotated[AdapterEvent, Field(discriminator="type")])


def decode_event(value: bytes | None) -> AdapterEvent:
    """The event in a record of `adapter-events`. Raises InvalidRecord."""
    return decode_one(_EVENTS, value, "adapter event")


def revision_key(adapter_id: str, number: int) -> bytes:
    """The compaction key of a revision record."""
    return f"{adapter_id}/{number}".encode()


def head_key(adapter_id: str) -> bytes:
    """The compaction key of a head record."""
    return f"{adapter_id}/head".encode()


def spent_key(partition: int) -> bytes:
    """The compaction key of a partition's record of spent numbers. No adapter has such a name."""
    return SPENT_PREFIX + b"%d" % partition
