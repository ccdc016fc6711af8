"""A local dataset becomes an object of the store, where every trainer may read it, whatever machine it runs on."""

import hashlib
from pathlib import Path

from mint_stream.errors import InvalidDataset
from mint_stream.settings import Settings
from mint_stream.store import Store

FOLDER = "datasets"


def upload(path: Path, settings: Settings) -> str:
    """The uri of the file's content in the store; the same content is stored once. Raises InvalidDataset when it cannot be read."""
    try:
        content = path.expanduser().read_bytes()
    except OSError as error:
        raise InvalidDataset(f"{path}: {error.strerror}: name a file of JSON lines, or a uri that the trainer may read") from error
    name = f"{FOLDER}/{hashlib.sha256(content).hexdigest()}.jsonl"
    store = Store(settings.store_uri, settings.store.options)
    store.put_object(name, content)
    return f"{store.uri}/{name}"
