"""Which backend a store's uri names."""

from collections.abc import Callable, Mapping
from typing import Any

from mint_stream.errors import StoreUnsuitable
from mint_stream.store.files import FileObjects, file_path
from mint_stream.store.memory import MemoryObjects
from mint_stream.store.objects import Objects
from mint_stream.store.s3 import S3Objects


def objects_at(uri: str, options: Mapping[str, Any] | None = None) -> Objects:
    """The backend for `uri`. `options` go to fsspec. Raises StoreUnsuitable for backends that cannot create atomically."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in _BACKENDS:
        raise StoreUnsuitable(
            f"the store {uri!r} cannot create objects atomically: use one of {', '.join(f'{name}://' for name in _BACKENDS)}"
        )
    return _BACKENDS[scheme](uri, rest, dict(options or {}))


_BACKENDS: dict[str, Callable[[str, str, dict[str, Any]], Objects]] = {
    "file": lambda uri, _rest, options: FileObjects(file_path(uri), sync=options.get("sync", True)),
    "memory": lambda _uri, rest, _options: MemoryObjects(rest),
    "s3": lambda _uri, rest, options: S3Objects(rest, options),
}
