"""A local dataset in the store: the same content once, under its digest."""

from pathlib import Path

import pytest

from mint_stream.app.datasets import upload
from mint_stream.errors import InvalidDataset
from mint_stream.settings import Settings
from mint_stream.store import read_uri


def test_what_was_put_there_is_read_back_by_its_uri_and_stored_once(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path)
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b'{"prompt": "a", "completion": "b"}\n')
    uri = upload(lines, settings)
    again = upload(lines, settings)
    assert uri == again
    assert uri.startswith(settings.store_uri)
    assert read_uri(uri, (settings.store_uri,), 1000) == lines.read_bytes()
    lines.write_bytes(b"other\n")
    assert upload(lines, settings) != uri


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match=r"gone\.jsonl: No such file"):
        upload(tmp_path / "gone.jsonl", Settings.load(home=tmp_path))
