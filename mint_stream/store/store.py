"""Store: revisions and checkpoints as immutable objects. What is read has the digest it was written with, or is an error.

    <uri>/adapters/<digest>/<upload>/{adapter_config.json, adapter_model.safetensors, manifest.json}
    <uri>/jobs/<job_id>/<attempt>/<step>/...

The name of an upload ends with a checksum of its manifest, so that a changed manifest is noticed as surely as a changed file.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from mint_stream.errors import CorruptObject, InvalidRecord, UriNotAllowed
from mint_stream.messages.adapters import FileEntry, Manifest
from mint_stream.messages.shared import TargetShape
from mint_stream.store.backends import objects_at
from mint_stream.store.objects import ObjectEntry

MANIFEST_FILE = "manifest.json"
ADAPTERS = "adapters"
_NAME = re.compile(r"[A-Za-z0-9_%=+,@~-][A-Za-z0-9._%=+,@~-]*")


class Store:
    """Objects below one uri. Every method blocks, may be called from any thread, and raises StoreUnavailable when the backend fails."""

    def __init__(self, uri: str, options: Mapping[str, Any] | None = None) -> None:
        """`options` are the fsspec backend's. Raises StoreUnsuitable for a backend that cannot create objects atomically."""
        self.uri = uri.rstrip("/")
        self._objects = objects_at(self.uri, options)

    def put_revision(
        self,
        files: Mapping[str, bytes],
        *,
        digest: str,
        base_digest: str,
        targets: Sequence[TargetShape],
        parameters: int,
        numeric_fingerprint: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Manifest:
        """Write the files under a prefix of their own, read each back, and write the manifest last. The revision is durable on return."""
        manifest = Manifest(
            digest=digest,
            uri=self.uri,
            files=tuple(FileEntry(name=name, size_bytes=len(files[name]), sha256=_sha256(files[name])) for name in sorted(files)),
            base_digest=base_digest,
            targets=tuple(targets),
            parameters=parameters,
            numeric_fingerprint=numeric_fingerprint,
            metrics=dict(metrics or {}),
        )
        prefix = f"{ADAPTERS}/{digest}/{uuid.uuid4().hex}-{_checksum(manifest.encode(), self.uri)}"
        placed = manifest.model_copy(update={"uri": f"{self.uri}/{prefix}"})
        for name, content in sorted(files.items()):
            self._put_verified(f"{prefix}/{name}", content)
        self._put_verified(f"{prefix}/{MANIFEST_FILE}", placed.encode())
        return placed

    def read_manifest(self, uri: str) -> Manifest:
        """The manifest of the revision at `uri`. Raises CorruptObject, or UriNotAllowed for a uri outside this store's adapters."""
        prefix = self._revision_prefix(uri)
        content = self._objects.read(f"{prefix}/{MANIFEST_FILE}")
        _, digest, upload = prefix.split("/")
        if _checksum(content, uri.rstrip("/")) != upload.rpartition("-")[2]:
            raise CorruptObject(f"{uri}/{MANIFEST_FILE} is not what was published")
        try:
            manifest = Manifest.decode(content)
        except InvalidRecord as error:
            raise CorruptObject(f"{uri}/{MANIFEST_FILE} is not a manifest: {error}") from error
        if manifest.digest != digest:
            raise CorruptObject(f"{uri}/{MANIFEST_FILE} is of digest {manifest.digest[:12]}, stored under {digest[:12]}")
        return manifest

    def read_revision(self, revision: str | Manifest) -> dict[str, bytes]:
        """The files of a revision, given by uri or manifest, each with the size and sha256 it was published under. Raises CorruptObject."""
        uri = revision if isinstance(revision, str) else revision.uri
        manifest = self.read_manifest(uri)
        if isinstance(revision, Manifest) and manifest != revision:
            raise CorruptObject(f"{uri}/{MANIFEST_FILE} is not the manifest that was announced")
        prefix = self._revision_prefix(uri)
        return {entry.name: self._read_verified(f"{prefix}/{entry.name}", entry) for entry in manifest.files}

    def create_object(self, path: str, content: bytes) -> bool:
        """Write an object unless one is there; of any number of racing writers exactly one is told True."""
        return self._objects.create(_checked(path), content)

    def put_object(self, path: str, content: bytes) -> None:
        """Write an object once. The same bytes again are no error; other bytes raise CorruptObject, as objects never change."""
        if not self.create_object(path, content) and self.read_object(path) != content:
            raise CorruptObject(f"{self.uri}/{path} is there with other bytes: objects never change, choose another path")

    def read_object(self, path: str) -> bytes:
        """The bytes at `path`, a path below the store's uri."""
        return self._objects.read(_checked(path))

    def list_objects(self, prefix: str) -> list[str]:
        """The paths of all objects in the folder `prefix`, sorted; empty when there is none."""
        return [entry.path for entry in self.entries(prefix)]

    def entries(self, prefix: str) -> list[ObjectEntry]:
        """As `list_objects`, with the time each was written."""
        return self._objects.entries(_checked(prefix))

    def delete_object(self, path: str) -> None:
        """Remove an object; one that is not there is no error."""
        self._objects.delete(_checked(path))

    def _put_verified(self, path: str, content: bytes) -> None:
        self._objects.create(_checked(path), content)
        if self._objects.read(path) != content:
            raise CorruptObject(f"{self.uri}/{path} reads back other bytes than were written")

    def _read_verified(self, path: str, entry: FileEntry) -> bytes:
        content = self._objects.read(_checked(path))
        if len(content) != entry.size_bytes or _sha256(content) != entry.sha256:
            raise CorruptObject(f"{self.uri}/{path} is not what was published: its sha256 is not {entry.sha256[:12]}")
        return content

    def _revision_prefix(self, uri: str) -> str:
        prefix = uri.rstrip("/").removeprefix(f"{self.uri}/")
        parts = prefix.split("/")
        if prefix == uri.rstrip("/") or len(parts) != 3 or parts[0] != ADAPTERS:
            raise UriNotAllowed(f"{uri} is not a revision in the store {self.uri}")
        return _checked(prefix)


def _checked(path: str) -> str:
    """The path without a slash at its end. Raises UriNotAllowed for one that could leave the store."""
    parts = path.strip("/").split("/")
    if path.startswith("/") or not all(_NAME.fullmatch(part) for part in parts):
        raise UriNotAllowed(f"{path!r} is not a path in a store: use letters, digits and . _ - % between slashes")
    return "/".join(parts)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _checksum(manifest: bytes, uri: str) -> str:
    """A checksum of a manifest that does not depend on its own uri, which the checksum becomes a part of."""
    written = json.dumps(uri, ensure_ascii=False)
    return _sha256(manifest.replace(written.encode(), b"", 1))[:32]
