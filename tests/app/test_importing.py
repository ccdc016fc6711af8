"""Importing an adapter, apart from Kafka: which files are read from where, and what lies in the store afterwards."""

import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mint_stream.adapter import CONFIG_FILE, TENSORS_FILE, AdapterWeights
from mint_stream.app.importing import import_adapter, read_files, store_files
from mint_stream.bus.connection import Connection
from mint_stream.client import Client
from mint_stream.errors import BaseUnusable, InvalidAdapter, InvalidRequest, StoreUnavailable, UriNotAllowed
from mint_stream.settings import Settings
from mint_stream.store import Store
from tests.factories import random_weights
from tests.provisioned import ensure_topics

WEIGHTS = random_weights()
FILES = WEIGHTS.to_peft()


def settings(tmp_path: Path, **store: Any) -> Settings:
    return Settings.load(home=tmp_path / "home", store={"uri": (tmp_path / "store").as_uri(), **store})


def saved(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def test_a_path_is_the_callers_own_and_needs_no_root(tmp_path: Path):
    assert read_files(str(saved(tmp_path / "poet", FILES)), settings(tmp_path)) == FILES


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(tmp_path / "poet", FILES)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_files("~/poet", settings(tmp_path)) == FILES


def test_other_files_are_known_by_name_and_never_read(tmp_path: Path):
    beside = {"README.md": b"hello", "training_args.bin": b"\x80 a pickle", "tokenizer.json": b"{}"}
    found = read_files(str(saved(tmp_path / "poet", FILES | beside)), settings(tmp_path))
    assert found.keys() == FILES.keys() | beside.keys()
    assert {name: found[name] for name in beside} == dict.fromkeys(beside, b"")
    assert AdapterWeights.from_files(found).digest == WEIGHTS.digest


def test_a_pickle_where_the_tensors_should_be_is_named(tmp_path: Path):
    found = read_files(str(saved(tmp_path / "poet", {CONFIG_FILE: FILES[CONFIG_FILE], "adapter_model.bin": b"\x80"})), settings(tmp_path))
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.safetensors is missing; adapter_model\.bin is a pickle"):
        AdapterWeights.from_files(found)


def test_a_file_is_no_directory(tmp_path: Path):
    file = saved(tmp_path / "poet", FILES) / CONFIG_FILE
    with pytest.raises(InvalidAdapter, match="is not a directory: name the one with"):
        read_files(str(file), settings(tmp_path))


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_uri_is_read_below_an_allowed_root(tmp_path: Path, slash: str):
    source = saved(tmp_path / "shared" / "poet", FILES).as_uri() + slash
    assert read_files(source, settings(tmp_path, allowed_roots=((tmp_path / "shared").as_uri(),))) == FILES


def test_the_store_itself_is_always_a_root(tmp_path: Path):
    source = saved(tmp_path / "store" / "given" / "poet", FILES).as_uri()
    assert read_files(source, settings(tmp_path)) == FILES


@pytest.mark.parametrize("way", ["elsewhere/poet", "shared/../elsewhere/poet", "shared/link", "shared-not/poet"])
def test_no_way_leads_out_of_the_roots(tmp_path: Path, way: str):
    saved(tmp_path / "elsewhere" / "poet", FILES)
    saved(tmp_path / "shared-not" / "poet", FILES)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "link").symlink_to(tmp_path / "elsewhere" / "poet")
    with pytest.raises(UriNotAllowed):
        read_files(f"{tmp_path.as_uri()}/{way}", settings(tmp_path, allowed_roots=((tmp_path / "shared").as_uri(),)))


def test_a_uri_with_a_file_missing_names_it(tmp_path: Path):
    source = saved(tmp_path / "store" / "poet", {CONFIG_FILE: FILES[CONFIG_FILE]}).as_uri()
    with pytest.raises(InvalidRequest, match=TENSORS_FILE):
        read_files(source, settings(tmp_path))


def test_a_memory_uri_is_read_when_it_is_allowed(tmp_path: Path):
    root = f"memory://imports-{uuid.uuid4().hex}"
    for name, content in FILES.items():
        fsspec.filesystem("memory").pipe_file(f"/{root.removeprefix('memory://')}/poet/{name}", content)
    assert read_files(f"{root}/poet", settings(tmp_path, allowed_roots=(root,))) == FILES
    with pytest.raises(UriNotAllowed):
        read_files(f"{root}/poet", settings(tmp_path))


@pytest.mark.s3
def test_an_adapter_in_a_bucket_is_read_and_stored_in_another(tmp_path: Path, s3_server: Any):
    given, kept = (s3_server.new_bucket(f"{part}-{uuid.uuid4().hex[:10]}") for part in ("given", "kept"))
    source = Store(given, s3_server.options)
    for name, content in FILES.items():
        source.put_object(f"poet/{name}", content)
    here = settings(tmp_path, uri=kept, options=s3_server.options, allowed_roots=(given,))
    found = read_files(f"{given}/poet", here)
    assert found == FILES
    store = Store(here.store_uri, here.store.options)
    manifest = store_files(store, AdapterWeights.from_files(found), "b" * 64)
    assert AdapterWeights.from_files(store.read_revision(manifest.uri)).digest == WEIGHTS.digest
    with pytest.raises(UriNotAllowed):
        read_files(f"{given}-else/poet", here)
    with pytest.raises((InvalidRequest, StoreUnavailable)):
        read_files(f"{given}/nobody", here)


def test_what_is_stored_describes_the_weights_and_is_read_back_the_same(tmp_path: Path):
    store = Store((tmp_path / "store").as_uri())
    manifest = store_files(store, WEIGHTS, "b" * 64)
    assert (manifest.digest, manifest.base_digest, manifest.parameters) == (WEIGHTS.digest, "b" * 64, WEIGHTS.parameters)
    assert manifest.targets == WEIGHTS.targets() and manifest.rank == WEIGHTS.rank
    assert store.read_revision(manifest) == FILES


@pytest.mark.kafka
async def test_a_pool_nobody_founded_is_said_before_any_file_is_looked_at(connection: Connection, topic_prefix: str, tmp_path: Path):
    await ensure_topics(connection, topic_prefix)
    async with Client(connection, topic_prefix) as client:
        with pytest.raises(BaseUnusable, match=f"mint-stream serve --pool {topic_prefix}"):
            await import_adapter(client, settings(tmp_path), "poet", str(tmp_path / "nowhere"))
