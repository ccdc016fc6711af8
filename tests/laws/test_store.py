"""The laws of every store: one suite, each backend."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mint_stream.errors import CorruptObject, StoreUnavailable, StoreUnsuitable, UriNotAllowed
from mint_stream.messages.adapters import Manifest
from mint_stream.messages.shared import TargetShape
from mint_stream.store import Store, sweep
from mint_stream.store.delayed import DelayedStore
from mint_stream.store.objects import ObjectEntry, check_exclusive

FILES = {"adapter_config.json": b'{"r":4}', "adapter_model.safetensors": bytes(range(256)) * 40}
TARGETS = (TargetShape(pattern="model.layers.*.q", in_features=8, out_features=8, count=2, rank=4),)
OpenStore = Callable[[], Store]


@pytest.fixture(params=["file", "not synced", "delayed", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Opens the same empty store again and again."""
    name = f"store-{uuid.uuid4().hex[:12]}"
    if request.param == "s3":
        server = request.getfixturevalue("s3_server")
        uri = server.new_bucket(name) + "/deep/er"
        return lambda: Store(uri, server.options)
    uri = f"memory://{name}" if request.param == "memory" else (tmp_path / "store").as_uri()
    if request.param == "delayed":
        return lambda: DelayedStore(uri, latency_s=0.001)
    return lambda: Store(uri, {"sync": False} if request.param == "not synced" else None)


def publish(store: Store, files: dict[str, bytes] = FILES, digest: str = "a" * 64, **more: Any) -> Manifest:
    return store.put_revision(files, digest=digest, base_digest="b" * 64, targets=TARGETS, parameters=64, **more)


def prefix_of(store: Store, manifest: Manifest) -> str:
    return manifest.uri.removeprefix(store.uri + "/")


def test_what_is_published_is_read_back_by_uri_and_by_manifest(open_store: OpenStore) -> None:
    manifest = publish(open_store(), metrics={"loss": 0.25}, numeric_fingerprint="cpu")
    reader = open_store()
    assert reader.read_manifest(manifest.uri) == manifest
    assert reader.read_revision(manifest.uri) == reader.read_revision(manifest) == FILES
    assert manifest.size_bytes == sum(map(len, FILES.values()))


def test_the_same_content_published_twice_lies_in_two_places(open_store: OpenStore) -> None:
    store = open_store()
    first, second = publish(store), publish(store)
    assert first.uri != second.uri
    assert first.digest == second.digest
    assert store.read_revision(first.uri) == store.read_revision(second.uri)


def test_without_a_manifest_there_is_no_revision(open_store: OpenStore) -> None:
    store = open_store()
    manifest = publish(store)
    store.delete_object(f"{prefix_of(store, manifest)}/manifest.json")
    with pytest.raises(StoreUnavailable, match=r"manifest\.json"):
        store.read_revision(manifest.uri)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_one_flipped_bit_anywhere_is_a_corrupt_object_by_name(open_store: OpenStore, name: str) -> None:
    store = open_store()
    path = f"{prefix_of(store, manifest := publish(store, metrics={'loss': 0.25}))}/{name}"
    whole = store.read_object(path)
    places = sorted({0, len(whole) // 3, len(whole) // 2, len(whole) - 1, *range(0, len(whole), max(1, len(whole) // 7))})
    for place in places:
        store.delete_object(path)
        store.put_object(path, whole[:place] + bytes([whole[place] ^ 0x04]) + whole[place + 1 :])
        with pytest.raises(CorruptObject, match=name):
            store.read_revision(manifest.uri)


def test_a_file_cut_short_is_a_corrupt_object(open_store: OpenStore) -> None:
    store = open_store()
    path = f"{prefix_of(store, manifest := publish(store))}/adapter_model.safetensors"
    store.delete_object(path)
    store.put_object(path, FILES["adapter_model.safetensors"][:-1])
    with pytest.raises(CorruptObject, match="adapter_model"):
        store.read_revision(manifest)


def test_another_revisions_manifest_in_its_place_is_a_corrupt_object(open_store: OpenStore) -> None:
    store = open_store()
    mine, other = publish(store), publish(store, {"adapter_config.json": b"{}"})
    path = f"{prefix_of(store, mine)}/manifest.json"
    foreign = store.read_object(f"{prefix_of(store, other)}/manifest.json")
    store.delete_object(path)
    store.put_object(path, foreign)
    with pytest.raises(CorruptObject):
        store.read_revision(mine.uri)


def test_a_manifest_that_was_not_the_announced_one_is_refused(open_store: OpenStore) -> None:
    store = open_store()
    manifest = publish(store)
    with pytest.raises(CorruptObject, match="announced"):
        store.read_revision(manifest.model_copy(update={"parameters": 65}))


def test_of_racing_writers_exactly_one_wins(open_store: OpenStore) -> None:
    writers = 12
    stores = [open_store() for _ in range(writers)]
    start = threading.Barrier(writers)

    def write(number: int) -> bool:
        start.wait()
        return stores[number].create_object("jobs/race/object", str(number).encode() * 1000)

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(write, range(writers)))
    assert won.count(True) == 1
    assert stores[0].read_object("jobs/race/object") == str(won.index(True)).encode() * 1000


def test_an_object_never_changes(open_store: OpenStore) -> None:
    store = open_store()
    store.put_object("jobs/j/1/0/x", b"first")
    store.put_object("jobs/j/1/0/x", b"first")
    with pytest.raises(CorruptObject, match="never change"):
        store.put_object("jobs/j/1/0/x", b"second")
    assert not store.create_object("jobs/j/1/0/x", b"second")
    assert store.read_object("jobs/j/1/0/x") == b"first"


def test_an_empty_object_is_an_object(open_store: OpenStore) -> None:
    store = open_store()
    assert store.create_object("jobs/empty", b"")
    assert not store.create_object("jobs/empty", b"x")
    assert store.read_object("jobs/empty") == b""


def test_a_listing_holds_the_folder_and_nothing_beside_it(open_store: OpenStore) -> None:
    store = open_store()
    for path in ("jobs/a/1/x", "jobs/a/2/y", "jobs/ab/1/z", "jobs/a.txt"):
        store.put_object(path, b"1")
    assert store.list_objects("jobs/a") == store.list_objects("jobs/a/") == ["jobs/a/1/x", "jobs/a/2/y"]
    assert store.list_objects("jobs/nobody") == []


def test_deleting_twice_is_no_error(open_store: OpenStore) -> None:
    store = open_store()
    store.put_object("jobs/a", b"1")
    store.delete_object("jobs/a")
    store.delete_object("jobs/a")
    assert store.list_objects("jobs") == []


def test_a_missing_object_may_come_later(open_store: OpenStore) -> None:
    with pytest.raises(StoreUnavailable, match="jobs/none"):
        open_store().read_object("jobs/none")


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "", ".hidden", "a/./b", "a\nb", "a\\b"])
def test_a_path_that_could_leave_the_store_is_refused(open_store: OpenStore, path: str) -> None:
    store = open_store()
    for touch in (store.read_object, store.delete_object, store.list_objects, lambda name: store.put_object(name, b"")):
        with pytest.raises(UriNotAllowed):
            touch(path)


def test_a_revision_outside_the_stores_adapters_is_refused(open_store: OpenStore) -> None:
    store = open_store()
    for uri in (
        "file:///etc/adapters/a/b",
        f"{store.uri}/jobs/a/b",
        f"{store.uri}/adapters/../b",
        f"{store.uri}/adapters/a",
        f"{store.uri}x/adapters/a/b",
    ):
        with pytest.raises(UriNotAllowed):
            store.read_revision(uri)


def test_sweeping_removes_only_what_is_old_and_unreferenced(open_store: OpenStore) -> None:
    store = open_store()
    kept, loose = publish(store), publish(store)
    store.put_object("jobs/j/1/0/checkpoint", b"1")
    written_s = max(entry.modified_s for entry in store.entries("adapters"))
    assert sweep(store, {kept.uri}, older_than_s=60, now_s=written_s + 30) == []
    assert sweep(store, {kept.uri}, older_than_s=60, now_s=written_s + 90) == [loose.uri]
    assert store.read_revision(kept.uri) == FILES
    assert len(store.list_objects("adapters")) == 3
    assert store.list_objects("jobs") == ["jobs/j/1/0/checkpoint"]


@pytest.mark.parametrize("uri", ["ftp://host/x", "http://host/x", "gs://bucket", "/plain/path", "zip://x", ""])
def test_backends_without_atomic_create_are_refused(uri: str) -> None:
    with pytest.raises(StoreUnsuitable, match=r"file://, memory://, s3://"):
        Store(uri)


class Overwriting:
    """A backend that believes every create was the first."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def create(self, path: str, content: bytes) -> bool:
        self.held[path] = content
        return True

    def read(self, path: str, limit: int | None = None) -> bytes:
        return self.held[path][:limit]

    def entries(self, prefix: str) -> list[ObjectEntry]:
        return [ObjectEntry(path, 0.0) for path in sorted(self.held)]

    def delete(self, path: str) -> None:
        self.held.pop(path, None)


def test_a_server_that_ignores_conditional_writes_is_refused_and_left_clean() -> None:
    objects = Overwriting()
    with pytest.raises(StoreUnsuitable, match="conditional"):
        check_exclusive(objects)
    assert objects.entries("") == []


@pytest.mark.s3
def test_an_object_sent_in_parts_is_created_once_too(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint_stream.store.s3.MULTIPART_BYTES", 5 * 2**20)
    store = Store(s3_server.new_bucket(f"parts-{uuid.uuid4().hex[:12]}"), s3_server.options)
    content = bytes(11 * 2**20)
    assert store.create_object("jobs/big", content)
    assert not store.create_object("jobs/big", content[:-1])
    assert len(store.read_object("jobs/big")) == len(content)


@pytest.mark.s3
def test_a_server_that_does_not_answer_is_a_passing_failure(s3_server: Any) -> None:
    nobody = {**s3_server.options, "endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 1}}}
    store = Store("s3://bucket", nobody)
    store._objects._fs.retries = 1  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailable):
        store.read_object("jobs/x")


def test_a_store_in_a_directory_that_cannot_be_made_is_a_passing_failure(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"a file")
    with pytest.raises(StoreUnavailable, match="jobs/x"):
        Store((tmp_path / "taken").as_uri()).put_object("jobs/x", b"1")


def test_readers_of_a_directory_never_see_half_an_object(tmp_path: Path) -> None:
    store = Store(tmp_path.as_uri())
    content = bytes(4 * 2**20)
    done = threading.Event()
    sizes: set[int] = set()

    def look() -> None:
        while not done.is_set():
            sizes.update(len(store.read_object(path)) for path in store.list_objects("jobs"))

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        for number in range(20):
            store.put_object(f"jobs/{number}", content)
        done.set()
        looking.result()
    assert sizes <= {len(content)}
    assert [path.name for path in tmp_path.rglob(".new-*")] == []
