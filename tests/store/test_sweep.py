"""Sweeping under any history of uploads, announces and time: what may still be announced or was announced is never lost."""

import uuid

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mint_stream.errors import StoreUnavailable
from mint_stream.messages.adapters import Manifest
from mint_stream.messages.shared import TargetShape
from mint_stream.store import Store
from mint_stream.store.sweep import sweep

TARGETS = (TargetShape(pattern="model.layers.*.self_attn.q_proj", in_features=16, out_features=16, count=2, rank=4),)
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"\x00" * 64}
ANNOUNCE_S = 100.0
"""The oldest upload that a registrar of this history would still announce."""
SWEEP_S = 2 * ANNOUNCE_S


def new_store() -> Store:
    return Store(f"memory://sweep-{uuid.uuid4().hex}")


def upload(store: Store, digest: str = "a") -> Manifest:
    return store.put_revision(FILES, digest=digest * 64, base_digest="b" * 64, targets=TARGETS, parameters=64)


def written_s(store: Store) -> float:
    """When the newest object of the store was written, by the store's own clock."""
    return max(entry.modified_s for entry in store.entries("adapters"))


class AnyHistory(RuleBasedStateMachine):
    """Time only passes by rule: the store's own clock stands still within a history, so ages are counted from each upload."""

    def __init__(self) -> None:
        super().__init__()
        self.store = new_store()
        self.later_s = 0.0
        self.uploaded: dict[str, float] = {}
        self.announced: set[str] = set()
        self.swept: set[str] = set()

    @rule(digest=st.sampled_from("acd"))
    def put(self, digest: str) -> None:
        """All uploads are made now; a history that has moved on makes no new ones, as their objects would look old."""
        if not self.later_s:
            uri = upload(self.store, digest).uri
            self.uploaded[uri] = written_s(self.store)

    @rule(step_s=st.sampled_from([1.0, 60.0, 150.0]))
    def time_passes(self, step_s: float) -> None:
        self.later_s += step_s

    @precondition(lambda self: set(self.uploaded) - self.swept)
    @rule(data=st.data())
    def announce(self, data: st.DataObject) -> None:
        """A registrar refuses what is too old."""
        uri = data.draw(st.sampled_from(sorted(set(self.uploaded) - self.swept)))
        if self.later_s <= ANNOUNCE_S:
            assert self.store.read_revision(uri) == FILES
            self.announced.add(uri)

    @precondition(lambda self: self.uploaded)
    @rule()
    def sweep(self) -> None:
        now_s = max(self.uploaded.values()) + self.later_s
        gone = sweep(self.store, self.announced, SWEEP_S, now_s)
        expected = {uri for uri, at_s in self.uploaded.items() if uri not in self.announced | self.swept and at_s < now_s - SWEEP_S}
        assert gone == sorted(expected)
        self.swept |= expected

    @invariant()
    def what_was_announced_is_whole(self) -> None:
        for uri in self.announced:
            assert self.store.read_revision(uri) == FILES

    @invariant()
    def what_is_left_are_exactly_the_uploads_that_were_not_swept(self) -> None:
        left = {f"{self.store.uri}/{path.rpartition('/')[0]}" for path in self.store.list_objects("adapters")}
        assert left == set(self.uploaded) - self.swept
        assert len(self.store.list_objects("adapters")) == 3 * len(left)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_an_empty_store_has_nothing_to_sweep():
    assert sweep(new_store(), set(), 0.0, 1e12) == []


def test_an_upload_exactly_as_old_as_the_limit_stays():
    store = new_store()
    uri = upload(store).uri
    at_s = written_s(store)
    assert sweep(store, set(), 60.0, at_s + 60.0) == []
    assert sweep(store, set(), 60.0, at_s + 61.0) == [uri]


def test_an_upload_without_its_manifest_is_swept_as_well():
    """A publisher that died leaves files; so does a sweep that was interrupted after the manifest."""
    store = new_store()
    manifest = upload(store)
    prefix = manifest.uri.removeprefix(f"{store.uri}/")
    at_s = written_s(store)
    store.delete_object(f"{prefix}/manifest.json")
    assert sweep(store, set(), 60.0, at_s + 61.0) == [manifest.uri]
    assert store.list_objects("adapters") == []


def test_two_uploads_of_one_digest_are_swept_apart():
    store = new_store()
    first, second = upload(store), upload(store)
    assert sweep(store, {second.uri}, 60.0, written_s(store) + 61.0) == [first.uri]
    assert store.read_revision(second) == FILES


def test_what_is_no_adapter_is_never_looked_at():
    store = new_store()
    for path in ("jobs/j/1/0/manifest.json", "datasets/d.jsonl"):
        store.put_object(path, b"1")
    assert sweep(store, set(), 0.0, 1e12) == []
    assert store.list_objects("jobs") and store.list_objects("datasets")


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["jobs/a", "jobs/b/c", "jobs/b/d", "datasets/x", "datasets/x-y"]), st.binary(max_size=8)))
def test_a_store_is_a_dictionary_that_is_written_once(objects: dict[str, bytes]):
    """Law: listings are the sorted keys of a folder, reads the values, second writes are refused, deletes forget."""
    store = new_store()
    for path, content in objects.items():
        assert store.create_object(path, content) and not store.create_object(path, content + b"x")
    for folder in ("jobs", "jobs/b", "datasets"):
        assert store.list_objects(folder) == sorted(path for path in objects if path.startswith(f"{folder}/"))
    for path, content in objects.items():
        assert store.read_object(path) == content
        store.delete_object(path)
        try:
            store.read_object(path)
        except StoreUnavailable:
            continue
        raise AssertionError(f"{path} is still there")
    assert store.list_objects("jobs") == []
