"""Every error of mint_stream, as one tree.

    MintError
    ├── Reject   the input is at fault: answer it with a typed error, never try again
    │   ├── InvalidRecord · InvalidRequest · PromptTooLong · DeadlineExceeded · Cancelled · RequestConflict
    │   ├── UnknownAdapter · UnknownRevision · NoProductionRevision · RevisionRetired · RevisionQuarantined · AdapterUnloadable
    │   ├── BaseMismatch · PositionNotReached · ReplyTopicRefused · CommandRejected · UnknownJob · ControlRefused · QuotaExceeded
    │   └── InvalidAdapter · InvalidDataset · InvalidJob · InvalidRule · UriNotAllowed · CorruptObject · TrainingDiverged · PoisonRecord
    ├── Retry    something outside failed: the same call may succeed later
    │   └── StoreUnavailable · BusUnavailable · OwnershipLost · ReplyTimeout · AdapterNotLoaded · NoRollouts
    └── Stop     this process must not go on: a person has to act
        └── TopicMismatch · BaseConflict · BaseUnusable · InvalidSettings · MissingJava · PortTaken · DownloadCorrupt
            · BrokerFailed · StoreUnsuitable · EngineFailed · DeviceLost · MissingExtra · AccessRefused

Each leaf has a stable `code`: the same string stands in the error result, in `ce_*` headers of a dead letter and in the log line.
"""

import re
from typing import ClassVar


def _code(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


class MintError(Exception):
    """Root of the tree. `str(error)` says what happened, to which id, and what to do next."""

    code: ClassVar[str] = "mint-error"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.code = _code(cls.__name__)


class Reject(MintError):
    """The input is at fault; the same input will always fail."""


class Retry(MintError):
    """Something outside is at fault; the same call may succeed later."""


class Stop(MintError):
    """The process must not go on until a person has changed something."""


class InvalidRecord(Reject):
    """The bytes of a Kafka record are not the documented JSON."""


class InvalidRequest(Reject):
    """A well-formed request asks for something that cannot be."""


class PromptTooLong(Reject):
    """Prompt and requested tokens do not fit the base's context."""


class DeadlineExceeded(Reject):
    """The request's deadline passed before it was answered."""


class Cancelled(Reject):
    """Somebody cancelled the request or the job."""


class RequestConflict(Reject):
    """A request_id was used before with another body."""


class UnknownAdapter(Reject):
    """No adapter of this name is in the catalog."""


class UnknownRevision(Reject):
    """The adapter exists, the revision or alias asked for does not."""


class NoProductionRevision(Reject):
    """The adapter exists but nothing was promoted yet."""


class RevisionRetired(Reject):
    """The revision was retired and is not served any more."""


class RevisionQuarantined(Reject):
    """The revision failed to load or to compute; it is not served."""


class AdapterUnloadable(Reject):
    """The revision's bytes are no adapter, or compute numbers that are not finite, wherever it is loaded."""


class BaseMismatch(Reject):
    """An adapter was trained for another base than the one resident here."""


class PositionNotReached(Reject):
    """The catalog did not reach the position asked for before the deadline."""


class ReplyTopicRefused(Reject):
    """`reply_to` names a topic not declared for replies."""


class CommandRejected(Reject):
    """The registrar refused a command; the message is its reason."""


class InvalidAdapter(Reject):
    """Adapter files are malformed, not finite, or use what we refuse by name."""


class InvalidDataset(Reject):
    """A training dataset has a bad line; the message names it."""


class InvalidJob(Reject):
    """A training job asks for something that cannot be."""


class UnknownJob(Reject):
    """Nobody submitted a training job of this id, or its history is no longer kept."""


class ControlRefused(Reject):
    """A training job's state does not allow what was asked of it."""


class QuotaExceeded(Reject):
    """A training job is more than its tenant's quota will ever allow."""


class InvalidRule(Reject):
    """A promotion rule asks for something that cannot be."""


class UriNotAllowed(Reject):
    """A uri lies outside the roots this worker may read."""


class CorruptObject(Reject):
    """Stored bytes do not have the digest they were published under."""


class PoisonRecord(Reject):
    """A record ended every worker that ran it, the last one while it ran alone."""


class TrainingDiverged(Reject):
    """A training job's loss or gradient is not finite."""


class StoreUnavailable(Retry):
    """The object store did not answer or does not hold the object."""


class BusUnavailable(Retry):
    """Kafka did not answer in time."""


class OwnershipLost(Retry):
    """Another process now owns this partition, claim or transaction."""


class ReplyTimeout(Retry):
    """No answer arrived in the time the caller gave."""


class AdapterNotLoaded(Retry):
    """This worker has no room for a revision that may be good: another one, or this one later, can serve it."""


class NoRollouts(Retry):
    """Of all answers that a training step was to learn from, none came."""


class TopicMismatch(Stop):
    """A topic on the cluster differs from its file in topics/."""


class BaseConflict(Stop):
    """The pool was founded by a base with another digest."""


class BaseUnusable(Stop):
    """The base model cannot be loaded or has an architecture we refuse by name."""


class InvalidSettings(Stop):
    """A setting is unknown, malformed, or contradicts another."""


class MissingJava(Stop):
    """No Java ≥ 17 was found to run the embedded Kafka."""


class MissingExtra(Stop):
    """An optional part was not installed."""


class PortTaken(Stop):
    """Another process listens on the port."""


class DownloadCorrupt(Stop):
    """Downloaded bytes do not have the pinned checksum."""


class BrokerFailed(Stop):
    """The embedded Kafka ended or did not become ready."""


class AccessRefused(Stop):
    """Kafka does not accept who we say we are, or does not let us do this."""


class StoreUnsuitable(Stop):
    """The storage backend cannot create objects atomically."""


class EngineFailed(Stop):
    """The engine thread ended unexpectedly."""


class DeviceLost(Stop):
    """The device computes nothing any more, not even the base alone."""


def leaves(root: type[MintError] = MintError) -> dict[str, type[MintError]]:
    """Every concrete error by its code."""
    found: dict[str, type[MintError]] = {}
    for child in root.__subclasses__():
        found |= leaves(child) or {child.code: child}
    return found
