"""Reading what a request names by uri, a dataset or an adapter to import, only from where this process may read."""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mint_stream.errors import InvalidRequest, StoreUnavailable, StoreUnsuitable, UriNotAllowed
from mint_stream.store.backends import objects_at
from mint_stream.store.files import file_path


def read_uri(uri: str, allowed_roots: Sequence[str], max_bytes: int, options: Mapping[str, Any] | None = None) -> bytes:
    """The bytes at `uri` (file://, s3://, memory:// or an absolute path), when it lies below one of `allowed_roots`.

    Links and `..` are resolved before the comparison. Raises UriNotAllowed, InvalidRequest for nothing there or more than `max_bytes`,
    StoreUnavailable. `options` are the fsspec backend's.
    """
    target = _as_uri(uri)
    content = (
        _read_file(target, allowed_roots, max_bytes)
        if target.startswith("file://")
        else _read_remote(target, allowed_roots, max_bytes, options)
    )
    if len(content) > max_bytes:
        raise InvalidRequest(f"{uri} is larger than the {max_bytes} bytes allowed")
    return content


def _read_file(uri: str, allowed_roots: Sequence[str], max_bytes: int) -> bytes:
    roots = [file_path(_as_uri(root)).resolve() for root in allowed_roots if _as_uri(root).startswith("file://")]
    path = _resolved(uri)
    if not any(path.is_relative_to(root) for root in roots):
        raise _refused(uri)
    try:
        return _read_regular(path, max_bytes + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InvalidRequest(f"there is no file at {uri}") from error
    except OSError as error:
        raise StoreUnavailable(f"{uri} could not be read: {error}") from error


def _resolved(uri: str) -> Path:
    """Where a stranger's file uri leads. What cannot be a path here (another machine, a null byte, a name too long) is refused, too."""
    try:
        return file_path(uri).resolve()
    except (StoreUnsuitable, ValueError, OSError, RuntimeError) as error:
        raise UriNotAllowed(f"{uri[:200]!r} is not a file uri of this machine: {error}") from error


def _read_regular(path: Path, limit: int) -> bytes:
    """At most `limit` bytes. The path is resolved, so a link at its end appeared since, and a pipe would block for ever."""
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise IsADirectoryError(path)
        return file.read(limit)


def _read_remote(uri: str, allowed_roots: Sequence[str], max_bytes: int, options: Mapping[str, Any] | None) -> bytes:
    segments = uri.partition("://")[2].split("/")[1:]
    if any(segment in ("", ".", "..") for segment in segments) or not any(uri.startswith(root.rstrip("/") + "/") for root in allowed_roots):
        raise _refused(uri)
    parent, _, name = uri.rpartition("/")
    return objects_at(parent, options).read(name, max_bytes + 1)


def _as_uri(uri: str) -> str:
    return Path(uri).as_uri() if uri.startswith("/") else uri


def _refused(uri: str) -> UriNotAllowed:
    return UriNotAllowed(
        f"{uri} is not below a root this worker may read: put it there, or have the root added to MINT_STORE__ALLOWED_ROOTS"
    )
