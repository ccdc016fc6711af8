"""The rules of an announce: who may, of what, and what it moves."""

from mint_stream.catalog import aliases
from mint_stream.catalog.case import Case, Refusal, Repetition
from mint_stream.catalog.servability import unservable
from mint_stream.catalog.state import Decision
from mint_stream.messages.adapters import Announce, Head, Revision, RevisionAnnounced
from mint_stream.messages.fleet import PoolBase

_MANIFEST_BYTES = 256 * 1024


def announce(case: Case, command: Announce, base: PoolBase | None, max_age_ms: int) -> Decision:
    """A new revision. Candidate always moves to it; production moves in the same decision when the adapter's rule is auto."""
    head = _head(case, command)
    case.check_pool(head, command.pool)
    _check_claim(head, command)
    _check_step(case, command)
    _check_age(case, command, max_age_ms)
    _check_manifest(command, base)
    _check_parent(case, command)
    revision = _revision(command, head.next_number, case.now_ms)
    after = aliases.moved(head.aliases, aliases.CANDIDATE, revision.number)
    if head.rule == "auto":
        after = aliases.moved(after, aliases.PRODUCTION, revision.number)
    written = case.remembering(head, number=revision.number).model_copy(update={"next_number": revision.number + 1, "aliases": after})
    moves = aliases.moves(command, "announce", head.aliases, after, case.now_ms)
    return Decision((_announced(case, revision), *moves), (revision,), written)


def _head(case: Case, command: Announce) -> Head:
    head = case.head_in(command.pool)
    first = head.next_number == head.first_number
    return head.model_copy(update={"rule": command.promotion}) if first and command.promotion is not None else head


def _check_claim(head: Head, command: Announce) -> None:
    if command.job_id is None:
        return
    if command.attempt is None or command.step is None:
        raise Refusal("a job's announce states its attempt and its step")
    claim = head.claim
    if claim is None or claim.job_id != command.job_id:
        holder = f"job {claim.job_id}" if claim is not None else "no job"
        raise Refusal(f"{holder} holds the claim on adapter {head.adapter_id}, not job {command.job_id}: claim it first")
    if claim.attempt != command.attempt:
        raise Refusal(f"attempt {command.attempt} of job {claim.job_id} was superseded by attempt {claim.attempt}: stop")


def _check_step(case: Case, command: Announce) -> None:
    if command.job_id is not None and command.step is not None:
        known = case.state.number_of_step(command.job_id, command.step)
        if known is not None:
            raise Repetition(number=known)


def _check_age(case: Case, command: Announce, max_age_ms: int) -> None:
    age_ms = case.now_ms - command.issued_at_ms
    if age_ms > max_age_ms:
        raise Refusal(f"it was issued {age_ms // 1000} s ago and its files may be swept after {2 * max_age_ms // 1000} s: announce again")


def _check_manifest(command: Announce, base: PoolBase | None) -> None:
    if len(command.manifest.encode()) > _MANIFEST_BYTES:
        raise Refusal(f"its manifest has more than {_MANIFEST_BYTES} bytes: keep metrics and names few")
    if base is None:
        raise Refusal(f"pool {command.pool} has no base-models record: start a serving worker for it first")
    if reason := unservable(command.manifest, base):
        raise Refusal(reason)


def _check_parent(case: Case, command: Announce) -> None:
    if command.parent is not None and case.existing_revision(command.parent).state == "retired":
        raise Refusal(f"its parent, revision {command.parent}, is retired: name a parent that is served, or none")


def _revision(command: Announce, number: int, now_ms: int) -> Revision:
    manifest = command.manifest
    return Revision(
        adapter_id=command.adapter_id,
        number=number,
        state="announced",
        digest=manifest.digest,
        pool=command.pool,
        uri=manifest.uri,
        base_digest=manifest.base_digest,
        rank=manifest.rank,
        size_bytes=manifest.size_bytes,
        parent=command.parent,
        job_id=command.job_id,
        step=command.step,
        lineage=command.lineage,
        announced_at_ms=now_ms,
        metrics=manifest.metrics,
    )


def _announced(case: Case, revision: Revision) -> RevisionAnnounced:
    return RevisionAnnounced(
        **case.stamp, number=revision.number, digest=revision.digest, pool=revision.pool, job_id=revision.job_id, step=revision.step
    )
