"""Lineage: a revision's record says what made it, and made again from it, it is the same."""

import hashlib
import uuid
from collections.abc import AsyncIterator

import pytest

from mint_stream.messages.adapters import Revision
from mint_stream.messages.lineage import Lineage
from mint_stream.messages.training import TrainingJob
from mint_stream.store import read_uri
from mint_stream.workers.clock import now_ms
from tests.adapter_commands import announce, retire, set_rule
from tests.catalog.test_decide import Desk
from tests.training_system import GOOD, TrainingSystem


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TrainingSystem]:
    async with TrainingSystem(tmp_path_factory.mktemp("lineage")) as system:
        yield system


async def revision_of(system: TrainingSystem, adapter_id: str) -> tuple[Revision, Lineage]:
    await system.revisions(adapter_id)
    revision = system.catalog.resolve(adapter_id)
    assert revision.lineage is not None
    return revision, revision.lineage


def job_from(system: TrainingSystem, lineage: Lineage, name: str, **changes: object) -> TrainingJob:
    """The job of a record, under another name."""
    job = TrainingJob.decode(read_uri(lineage.job_uri, (system.store.uri,), 2**20))
    return job.model_copy(update={"job_id": name, "adapter_id": name, "submitted_at_ms": now_ms(), **changes})


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_revision_made_again_from_its_record_has_the_same_digest(system: TrainingSystem) -> None:
    name, again, other = (f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("made", "again", "other"))
    async with system.trainer():
        await system.submit(system.job(name, name, seed=7))
        assert (await system.ended(name)).state == "succeeded"
        revision, lineage = await revision_of(system, name)
        assert (lineage.seed, revision.job_id, revision.step) == (7, name, 4)
        assert lineage.dataset_digest == hashlib.sha256((system.data / GOOD).read_bytes()).hexdigest()
        assert revision.metrics["loss"] > 0
        for job in (job_from(system, lineage, again), job_from(system, lineage, other, seed=8)):
            await system.submit(job)
            assert (await system.ended(job.job_id)).state == "succeeded"
    copy, copied = await revision_of(system, again)
    assert (copied.numeric_fingerprint, copied.code_version) == (lineage.numeric_fingerprint, lineage.code_version)
    assert copy.digest == revision.digest
    assert (await revision_of(system, other))[0].digest != revision.digest, "another seed is another revision"


def test_a_retired_revision_keeps_its_parent_for_the_tree_and_drops_the_rest() -> None:
    desk = Desk()
    lineage = Lineage(job_uri="s3://x/jobs/1.json", dataset_digest="a" * 64, seed=1, code_version="1", numeric_fingerprint="b" * 64)
    desk.accept(announce("a"), announce("a", parent=1, lineage=lineage), set_rule("a", "manual"))
    made = desk.state.revision(2)
    assert made is not None and made.lineage == lineage
    desk.accept(announce("a"))
    desk.accept(retire("a", 3))
    desk.accept(announce("a", parent=2, lineage=lineage), retire("a", 4))
    stub = desk.state.revision(4)
    assert stub is not None and (stub.parent, stub.lineage, stub.uri) == (2, None, None)
