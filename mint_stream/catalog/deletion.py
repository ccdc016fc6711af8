"""The end of an adapter, and what is remembered of it: which numbers it had.

Laws: nothing is left in the catalog that names a deleted adapter; an adapter made later under the same name begins above every number
that was ever used under it, without a revision, an alias, a claim or an attempt of the one before.
"""

from mint_stream.catalog.aliases import PRODUCTION
from mint_stream.catalog.case import Case, Refusal
from mint_stream.catalog.state import Decision
from mint_stream.messages.adapters import AdapterDeleted, Delete, Head, revision_key


def delete(case: Case, command: Delete) -> Decision:
    """Every revision and the head go, whether or not anybody still uses them when `force` says so."""
    head = case.existing_head()
    case.check_position(command.expected_position)
    if not command.force:
        _check_unused(head)
    return Decision((AdapterDeleted(**case.stamp, next_number=head.next_number),), deleted=head)


def revision_keys(deleted: Head) -> list[bytes]:
    """What has to be tombstoned before the head: the keys of all revisions it ever had."""
    return [revision_key(deleted.adapter_id, number) for number in range(deleted.first_number, deleted.next_number)]


def _check_unused(head: Head) -> None:
    if PRODUCTION in head.aliases:
        raise Refusal(f"production points at revision {head.aliases[PRODUCTION]}, requests may be using it: delete with force to end them")
    if head.claim is not None:
        raise Refusal(
            f"job {head.claim.job_id} claimed it under attempt {head.claim.attempt} and may yet publish: "
            "delete with force once that job has ended"
        )
