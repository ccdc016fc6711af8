"""A checkpoint is read back whole, or the file that is at fault is named; two of a job are kept; nobody reads another job's."""

import uuid
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.errors import CorruptObject, InvalidJob, StoreUnavailable
from mint_stream.store import Store
from mint_stream.trainer.checkpoint import KEPT, Checkpoint, CheckpointManifest, CheckpointName, Checkpoints, check_same_job, folder_name
from tests.factories import random_weights

WEIGHTS = random_weights()
MOMENTS = {"first": torch.arange(6, dtype=torch.float32).reshape(2, 3), "second": torch.full((4,), 0.5)}
FILES = ("adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors")


@pytest.fixture
def store() -> Store:
    return Store(f"memory://checkpoints-{uuid.uuid4().hex}")


def manifest(step: int, attempt: int = 1, job_id: str = "j", **changes: object) -> CheckpointManifest:
    about = {
        "job_id": job_id,
        "name": CheckpointName(step=step, attempt=attempt),
        "cursor": 4 * step,
        "job_digest": "j" * 64,
        "dataset_digest": "d" * 64,
        "base_digest": "b" * 64,
        "numeric_fingerprint": "n" * 64,
        "files": (),
    }
    return CheckpointManifest(**{**about, **changes})


def write(store: Store, step: int, attempt: int = 1, job_id: str = "j") -> CheckpointManifest:
    return Checkpoints(store, job_id).write(manifest(step, attempt, job_id), WEIGHTS, MOMENTS)


def replace(store: Store, path: str, content: bytes | None) -> None:
    """What a person or a disk might do to a store that never changes an object itself."""
    store.delete_object(path)
    if content is not None:
        store.put_object(path, content)


def order(store: Store, job_id: str = "j") -> list[tuple[int, int]]:
    return [(name.step, name.attempt) for name in Checkpoints(store, job_id).names()]


def latest(store: Store, job_id: str = "j") -> Checkpoint:
    found = Checkpoints(store, job_id).latest()
    assert found is not None
    return found


def test_a_checkpoint_is_read_back_to_the_bit(store: Store):
    written = write(store, 3)
    read = latest(store)
    assert read.manifest == written and {entry.name for entry in written.files} == set(FILES)
    assert read.weights.digest == WEIGHTS.digest
    assert read.moments.keys() == MOMENTS.keys()
    assert all(torch.equal(read.moments[name], tensor) for name, tensor in MOMENTS.items())


def test_a_job_without_checkpoints_has_none(store: Store):
    write(store, 1, job_id="another")
    assert Checkpoints(store, "j").latest() is None and order(store) == []


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_an_error_by_name(store: Store, name: str):
    write(store, 1)
    write(store, 2)
    replace(store, f"jobs/j/1/2/{name}", None)
    with pytest.raises(CorruptObject, match=rf"jobs/j/1/2/{name} is missing.*another job_id"):
        Checkpoints(store, "j").latest()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 0.5, 0.999])
def test_one_changed_bit_is_an_error_by_name_and_never_the_checkpoint_before(store: Store, name: str, place: float):
    write(store, 1)
    write(store, 2)
    path = f"jobs/j/1/2/{name}"
    content = bytearray(store.read_object(path))
    content[int(place * len(content))] ^= 1
    replace(store, path, bytes(content))
    with pytest.raises(CorruptObject, match=rf"{name} is not what was written"):
        Checkpoints(store, "j").latest()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"job_id": "j"}', b"\xff\xfe"])
def test_a_manifest_that_is_none_is_a_corrupt_object_by_name(store: Store, content: bytes):
    write(store, 2)
    replace(store, "jobs/j/1/2/manifest.json", content)
    with pytest.raises(CorruptObject, match=r"jobs/j/1/2/manifest\.json"):
        Checkpoints(store, "j").latest()


def test_another_jobs_manifest_in_its_place_is_named(store: Store):
    write(store, 2)
    write(store, 2, job_id="other")
    replace(store, "jobs/j/1/2/manifest.json", store.read_object("jobs/other/1/2/manifest.json"))
    with pytest.raises(CorruptObject, match="job other"):
        Checkpoints(store, "j").latest()


def test_another_steps_manifest_in_its_place_is_named(store: Store):
    write(store, 1)
    write(store, 2)
    replace(store, "jobs/j/1/2/manifest.json", store.read_object("jobs/j/1/1/manifest.json"))
    with pytest.raises(CorruptObject, match="step=1"):
        Checkpoints(store, "j").latest()


def test_files_without_their_manifest_are_no_checkpoint(store: Store):
    """A writer that dies before the manifest leaves files that count for nothing, and the next writer is not in their way."""
    write(store, 1)
    for name in FILES:
        store.put_object(f"jobs/j/1/2/{name}", store.read_object(f"jobs/j/1/1/{name}"))
    assert latest(store).manifest.name.step == 1
    assert write(store, 2).name == latest(store).manifest.name


def test_writing_the_very_same_checkpoint_again_is_no_error_and_other_numbers_under_its_name_are(store: Store):
    assert write(store, 1) == write(store, 1)
    with pytest.raises(CorruptObject, match="never change"):
        Checkpoints(store, "j").write(manifest(1), random_weights(seed=9), MOMENTS)
    assert latest(store).weights.digest == WEIGHTS.digest


def test_the_last_two_are_kept_with_all_their_files_and_of_the_rest_nothing(store: Store):
    for step in range(1, 6):
        write(store, step)
    write(store, 1, job_id="j2")
    assert order(store) == [(4, 1), (5, 1)]
    expected = [f"jobs/j/1/{step}/{name}" for step in (4, 5) for name in sorted((*FILES, "manifest.json"))]
    assert store.list_objects("jobs/j") == expected
    assert order(store, "j2") == [(1, 1)]


def test_a_removal_that_was_interrupted_is_no_checkpoint(store: Store):
    for step in (1, 2):
        write(store, step)
    replace(store, "jobs/j/1/1/manifest.json", None)
    assert order(store) == [(2, 1)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3)), min_size=1, max_size=8, unique=True))
def test_whatever_order_they_are_written_in_the_furthest_step_counts_and_a_later_attempt_goes_before_an_earlier(written):
    """Law: after each write, what is kept is the last two of all that were kept and the new one, by (step, attempt)."""
    store = Store(f"memory://checkpoints-{uuid.uuid4().hex}")
    kept: list[tuple[int, int]] = []
    for step, attempt in written:
        write(store, step, attempt)
        kept = sorted([*kept, (step, attempt)])[-KEPT:]
        assert order(store) == kept
        assert (latest(store).manifest.name.step, latest(store).manifest.name.attempt) == kept[-1]


def test_moments_that_are_no_safetensors_file_are_named():
    files = WEIGHTS.to_peft() | {"optimizer.safetensors": b"not tensors"}
    with pytest.raises(CorruptObject, match=r"optimizer\.safetensors of job j"):
        Checkpoint.from_files(manifest(1), files)


def test_a_checkpoint_asked_for_by_a_name_it_has_not_is_unavailable(store: Store):
    write(store, 1)
    with pytest.raises(StoreUnavailable, match="jobs/j/1/7"):
        Checkpoints(store, "j").read(CheckpointName(step=7, attempt=1))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"job_digest": "x" * 64}, "the job's settings changed"),
        ({"dataset_digest": "x" * 64}, "its dataset changed"),
        ({"base_digest": "x" * 64}, "the base changed"),
        ({"job_digest": "x" * 64, "base_digest": "x" * 64}, "the job's settings and the base changed"),
    ],
)
def test_a_checkpoint_of_other_settings_data_or_base_is_refused_by_what_changed(changed: dict[str, str], says: str):
    with pytest.raises(InvalidJob, match=f"{says}.*another job_id"):
        check_same_job(manifest(1, **changed), "j" * 64, "d" * 64, "b" * 64)
    check_same_job(manifest(1), "j" * 64, "d" * 64, "b" * 64)


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_two_jobs_never_share_a_folder_and_every_folder_is_one_safe_segment(first: str, second: str):
    folders = [folder_name(first), folder_name(second)]
    assert (folders[0] == folders[1]) == (first == second)
    for folder in folders:
        assert "/" not in folder and not folder.startswith(".") and len(folder) <= 200


@pytest.mark.parametrize("job_id", ["a/b", "..", "../x", "a b", "größer", "x" * 500, "%2F", "a%2Fb", "~", "."])
def test_a_job_of_any_name_is_written_and_read_back(tmp_path: Path, job_id: str):
    store = Store((tmp_path / "store").as_uri())
    write(store, 1, job_id=job_id)
    assert latest(store, job_id).manifest.job_id == job_id
    assert all(path.startswith("jobs/") for path in store.list_objects("jobs")) and [p.name for p in tmp_path.iterdir()] == ["store"]
