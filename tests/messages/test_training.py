"""Jobs that contradict themselves are refused where they are made; a job's end is the end."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from mint_stream.errors import InvalidRecord
from mint_stream.messages.adapters import FileEntry, Manifest, head_key, revision_key
from mint_stream.messages.fleet import WorkerStatus
from mint_stream.messages.shared import TargetShape
from mint_stream.messages.training import (
    TERMINAL,
    Hyperparameters,
    JobState,
    LoraSettings,
    RolloutTerms,
    TrainingControl,
    TrainingEvent,
    TrainingJob,
)


def job(**changes: Any) -> TrainingJob:
    settings = changes.pop("hyperparameters", {"steps": 10})
    fields = {"job_id": "j", "adapter_id": "a", "dataset_uri": "file:///d", "submitted_at_ms": 1}
    return TrainingJob(**fields | changes, hyperparameters=Hyperparameters(**settings))


def event(state: JobState) -> TrainingEvent:
    return TrainingEvent(job_id="j", adapter_id="a", tenant="t", state=state, worker_id="w", steps=1, at_ms=1)


@pytest.mark.parametrize(("warmup", "fits"), [(0, True), (9, True), (10, False), (11, False)])
def test_warming_up_ends_before_the_job_does(warmup: int, fits: bool) -> None:
    settings = {"steps": 10, "warmup_steps": warmup}
    if fits:
        assert job(hyperparameters=settings).hyperparameters.warmup_steps == warmup
        return
    with pytest.raises(ValidationError, match="warmup_steps must be less than steps"):
        job(hyperparameters=settings)


DRAWN = {"method": "grpo", "rollouts": RolloutTerms(grader="exact-match"), "publish_every_steps": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "sft"}, "go together"),
        ({"rollouts": None}, "go together"),
        ({"publish_every_steps": None}, "give publish_every_steps"),
        ({"hyperparameters": {"steps": 1, "batch_size": 1025}}, "8200 rollouts a step"),
    ],
    ids=str,
)
def test_a_job_that_draws_what_it_learns_from_says_how_and_not_more_than_can_be(changes: dict[str, Any], words: str) -> None:
    assert job(**DRAWN).rollouts == RolloutTerms(grader="exact-match")
    with pytest.raises(ValidationError, match=words):
        job(**DRAWN | changes)


@pytest.mark.parametrize(
    "bad",
    [{"grader": "No Name"}, {"loss": "reinforce"}, {"group_size": 1}, {"max_tokens": 0}, {"temperature": 0}, {"max_staleness": -1}],
    ids=str,
)
def test_rollouts_that_cannot_be_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RolloutTerms(**{"grader": "exact-match"} | bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"steps": 1_000_001},
        {"steps": 1, "batch_size": 0},
        {"steps": 1, "learning_rate": 0.0},
        {"steps": 1, "learning_rate": float("inf")},
        {"steps": 1, "max_grad_norm": 0.0},
        {"steps": 1, "max_length_tokens": 1},
        {"steps": 1, "schedule": "zigzag"},
        {"steps": 1, "too_long": "ignore"},
    ],
    ids=str,
)
def test_hyperparameters_that_cannot_be_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Hyperparameters(**bad)


@pytest.mark.parametrize(
    "bad", [{"rank": 0}, {"rank": 513}, {"alpha": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"target_modules": "all"}], ids=str
)
def test_an_adapter_that_cannot_be_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoraSettings(**bad)


@pytest.mark.parametrize(
    "bad",
    [{"method": "ppo"}, {"parent": 0}, {"seed": -1}, {"seed": 2**63}, {"publish_every_steps": 0}, {"adapter_id": "a/b"}, {"priority": 11}],
    ids=str,
)
def test_a_job_that_cannot_be_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        job(**bad)


def test_a_job_may_be_cancelled_paused_and_resumed_and_nothing_else() -> None:
    for action in ("cancel", "pause", "resume"):
        assert TrainingControl.decode(b'{"job_id": "j", "action": "%s", "issued_at_ms": 1}' % action.encode()).action == action
    with pytest.raises(InvalidRecord, match="action"):
        TrainingControl.decode(b'{"job_id": "j", "action": "restart", "issued_at_ms": 1}')


@pytest.mark.parametrize("state", get_args(JobState))
def test_a_job_ends_by_success_failure_cancellation_or_rejection_and_by_nothing_else(state: JobState) -> None:
    assert event(state).terminal == (state in {"succeeded", "failed", "cancelled", "rejected"})
    assert set(get_args(JobState)) >= TERMINAL


def test_a_manifest_knows_its_largest_rank_and_its_whole_size() -> None:
    targets = tuple(TargetShape(pattern=f"p{rank}", in_features=1, out_features=1, count=1, rank=rank) for rank in (4, 16, 8))
    files = tuple(FileEntry(name=f"f{size}", size_bytes=size, sha256="a" * 64) for size in (3, 40))
    manifest = Manifest(digest="a" * 64, uri="u", files=files, base_digest="b" * 64, targets=targets, parameters=1)
    assert (manifest.rank, manifest.size_bytes) == (16, 43)
    for nothing in ({"files": ()}, {"targets": ()}):
        with pytest.raises(ValidationError):
            Manifest(**{**dict(manifest), **nothing})


def test_an_adapters_rows_lie_under_keys_of_their_own() -> None:
    """`head` is no number and a name has no slash: no adapter's key is another's."""
    assert (head_key("a"), revision_key("a", 7)) == (b"a/head", b"a/7")
    assert len({head_key("a"), head_key("a.1"), revision_key("a", 1), revision_key("a.1", 1), revision_key("a", 11)}) == 5


def test_a_worker_lists_at_most_64_residents() -> None:
    fields: dict[str, Any] = {"worker_id": "w", "role": "serve", "state": "ready", "started_at_ms": 1, "at_ms": 1}
    assert WorkerStatus(**fields, resident=("a@1",) * 64)
    with pytest.raises(ValidationError):
        WorkerStatus(**fields, resident=("a@1",) * 65)
