"""Immutable objects over fsspec: put once, get verified. `file://`, `memory://` (one process) and `s3://`."""

from mint_stream.store.objects import ObjectEntry, Objects
from mint_stream.store.store import MANIFEST_FILE, Store
from mint_stream.store.sweep import sweep
from mint_stream.store.uris import read_uri

__all__ = ["MANIFEST_FILE", "ObjectEntry", "Objects", "Store", "read_uri", "sweep"]
