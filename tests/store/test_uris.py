"""Reading by uri reaches what lies below the allowed roots, and nothing else."""

import os
from pathlib import Path

import pytest

from mint_stream.errors import InvalidRequest, UriNotAllowed
from mint_stream.store import Store, read_uri


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "allowed" / "deep").mkdir(parents=True)
    (tmp_path / "allowed" / "deep" / "data.jsonl").write_bytes(b"12345")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "allowed"


def test_a_file_below_a_root_is_read_by_uri_and_by_path(root: Path) -> None:
    data = root / "deep" / "data.jsonl"
    assert read_uri(data.as_uri(), [root.as_uri()], 5) == b"12345"
    assert read_uri(str(data), [str(root)], 5) == b"12345"
    assert read_uri(data.as_uri(), [str(root / "other"), root.as_uri() + "/"], 5) == b"12345"


@pytest.mark.parametrize(
    "uri",
    [
        "{root}/../secret",
        "{root}/deep/../../secret",
        "{root}/%2e%2e/secret",
        "{root}x/data.jsonl",
        "file:///etc/passwd",
        "{root}/link",
        "{root}/linked/secret",
    ],
)
def test_a_way_out_of_the_root_is_refused(root: Path, uri: str) -> None:
    (root / "link").symlink_to(root.parent / "secret")
    (root / "linked").symlink_to(root.parent)
    with pytest.raises(UriNotAllowed, match="MINT_STORE__ALLOWED_ROOTS"):
        read_uri(uri.format(root=root.as_uri()), [root.as_uri()], 100)


def test_without_roots_nothing_is_read(root: Path) -> None:
    with pytest.raises(UriNotAllowed):
        read_uri((root / "deep" / "data.jsonl").as_uri(), [], 100)


def test_a_root_on_one_backend_opens_none_on_another(root: Path) -> None:
    with pytest.raises(UriNotAllowed):
        read_uri("memory://allowed/x", [root.as_uri()], 100)


def test_more_bytes_than_allowed_are_refused(root: Path) -> None:
    with pytest.raises(InvalidRequest, match="larger than the 4 bytes"):
        read_uri((root / "deep" / "data.jsonl").as_uri(), [root.as_uri()], 4)


@pytest.mark.parametrize("name", ["nothing", "deep", "deep/data.jsonl/x"])
def test_what_is_no_file_is_named(root: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        read_uri((root / name).as_uri(), [root.as_uri()], 100)


def test_a_pipe_is_refused_and_does_not_block(root: Path) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(InvalidRequest, match="pipe"):
        read_uri((root / "pipe").as_uri(), [root.as_uri()], 100)


def test_objects_of_a_store_are_read_below_their_root() -> None:
    store = Store("memory://uris/roots")
    store.put_object("data/set.jsonl", b"12345")
    assert read_uri("memory://uris/roots/data/set.jsonl", ["memory://uris/roots"], 5) == b"12345"
    with pytest.raises(InvalidRequest):
        read_uri("memory://uris/roots/data/set.jsonl", ["memory://uris/roots"], 4)
    for uri in ("memory://uris/rootsx/y", "memory://uris/roots/../roots/data/set.jsonl", "memory://uris/roots", "memory://other/x"):
        with pytest.raises(UriNotAllowed):
            read_uri(uri, ["memory://uris/roots"], 5)


@pytest.mark.parametrize(
    "uri", ["file://host/etc/passwd", "file:///etc/%00", "file://[/x", "ftp://host/x", "nonsense", "", "file:///" + "x" * 5000]
)
def test_what_cannot_be_a_place_here_is_refused_and_stops_nothing(root: Path, uri: str) -> None:
    with pytest.raises(UriNotAllowed):
        read_uri(uri, [root.as_uri(), "memory://x"], 5)
