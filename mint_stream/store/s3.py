"""S3 and what speaks it, through s3fs. An object is created by a conditional write (`If-None-Match: *`), which the server must honour."""

import threading
from typing import Any

import s3fs
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]  # botocore ships no types

from mint_stream.store.objects import ObjectEntry, check_exclusive, unavailable

MULTIPART_BYTES = 50 * 2**20
_FAILURES = (BotoCoreError, ClientError, TimeoutError)


class S3Objects:
    """A prefix of a bucket. Instances may be shared by threads: s3fs runs everything on one loop of its own."""

    def __init__(self, root: str, options: dict[str, Any]) -> None:
        """`root` is bucket or bucket/prefix; `options` are s3fs's, e.g. endpoint_url, key, secret."""
        self._fs = s3fs.S3FileSystem(**({"use_listings_cache": False} | options))
        self._root = root.strip("/")
        self._probing = threading.RLock()
        self._probed = False

    def create(self, path: str, content: bytes) -> bool:
        """As `Objects.create`. Until the server has passed once, it is tried first: whether it honours conditional writes."""
        with self._probing:
            if not self._probed:
                self._try_server()
        return self._create(path, content)

    def _try_server(self) -> None:
        self._probed = True  # for the trial's own objects
        try:
            check_exclusive(self)
        except BaseException:
            self._probed = False
            raise

    def read(self, path: str, limit: int | None = None) -> bytes:
        with unavailable(path, *_FAILURES):
            return bytes(self._fs.cat_file(self._full(path), end=limit))

    def entries(self, prefix: str) -> list[ObjectEntry]:
        with unavailable(prefix, *_FAILURES):
            found = self._fs.find(self._full(prefix), detail=True)
        start = len(self._root) + 1
        below = self._full(prefix) + "/"
        files = (entry for entry in found.values() if entry["type"] == "file" and entry["name"].startswith(below))
        return sorted((ObjectEntry(entry["name"][start:], entry["LastModified"].timestamp()) for entry in files), key=lambda one: one.path)

    def delete(self, path: str) -> None:
        with unavailable(path, *_FAILURES):
            self._fs.rm_file(self._full(path))

    def _create(self, path: str, content: bytes) -> bool:
        with unavailable(path, *_FAILURES):
            try:
                self._fs.pipe_file(self._full(path), content, chunksize=MULTIPART_BYTES, mode="create")
            except OSError as error:
                if _lost(error):
                    return False
                raise
        return True

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")


def _lost(error: OSError) -> bool:
    """Whether the server said that an object is there already. s3fs only recognises Amazon's wording."""
    response = getattr(error.__cause__, "response", None) or {}
    return isinstance(error, FileExistsError) or response.get("Error", {}).get("Code") == "PreconditionFailed"
