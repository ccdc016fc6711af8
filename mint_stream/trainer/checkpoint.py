"""Checkpoints: what resumes a job, and is never served.

    jobs/<job_id>/<attempt>/<step>/adapter_config.json, adapter_model.safetensors, optimizer.safetensors, manifest.json (last)

A checkpoint counts once its manifest is there, and it must then be whole: a missing or changed file is an error, never a cold start.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mint_stream.adapter import AdapterWeights
from mint_stream.adapter.tensors import write_tensors
from mint_stream.errors import CorruptObject, InvalidJob, InvalidRecord
from mint_stream.messages.adapters import FileEntry
from mint_stream.messages.record import Record
from mint_stream.store import Store

MANIFEST = "manifest.json"
OPTIMIZER = "optimizer.safetensors"
KEPT = 2


class CheckpointName(Record):
    """Which checkpoint of a job. A later step comes after an earlier one, whatever attempt made it."""

    step: int
    attempt: int

    @property
    def order(self) -> tuple[int, int]:
        """What checkpoints of one job are sorted by."""
        return self.step, self.attempt


class CheckpointManifest(Record):
    """What a checkpoint resumes, and the files it consists of. The schedule, the order of examples and dropout follow from these."""

    job_id: str
    name: CheckpointName
    parent: CheckpointName | None = None
    """The checkpoint this attempt went on from."""
    cursor: int
    """Examples seen."""
    job_digest: str
    dataset_digest: str
    base_digest: str
    numeric_fingerprint: str
    inexact: bool = False
    """An attempt before it went on under another fingerprint: its bits are no unbroken run's, wherever the job goes on from here."""
    loss_scale: float = 1.0
    steps_at_scale: int = 0
    metrics: dict[str, float] = {}
    """Of the step it was made at."""
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: its manifest, the adapter's masters, the optimizer's moments."""

    manifest: CheckpointManifest
    weights: AdapterWeights
    moments: Mapping[str, Tensor]

    @classmethod
    def from_files(cls, manifest: CheckpointManifest, files: Mapping[str, bytes]) -> Self:
        """From verified files."""
        try:
            moments = safetensors.torch.load(files[OPTIMIZER])
        except SafetensorError as error:
            raise CorruptObject(f"{OPTIMIZER} of job {manifest.job_id} is not a safetensors file: {error}") from error
        return cls(manifest, AdapterWeights.from_files(files), moments)


class Checkpoints:
    """The checkpoints of one job in the store."""

    def __init__(self, store: Store, job_id: str, kept: int = KEPT) -> None:
        """`kept`: how many a write leaves of the job."""
        self._store = store
        self._kept = kept
        self._job_id = job_id
        self._root = f"jobs/{folder_name(job_id)}"

    def names(self) -> list[CheckpointName]:
        """All whole checkpoints of any attempt, the one to resume from last."""
        found = [
            path.removeprefix(self._root + "/").split("/") for path in self._store.list_objects(self._root) if path.endswith("/" + MANIFEST)
        ]
        return sorted((CheckpointName(attempt=int(attempt), step=int(step)) for attempt, step, _ in found), key=lambda name: name.order)

    def latest(self) -> Checkpoint | None:
        """The furthest checkpoint of any attempt; None when the job has none. Raises CorruptObject when it is not whole."""
        names = self.names()
        return self.read(names[-1]) if names else None

    def read(self, name: CheckpointName) -> Checkpoint:
        """Every file, verified. Raises CorruptObject for one that is missing or changed."""
        manifest = self._manifest(name)
        if manifest.job_id != self._job_id or manifest.name != name:
            raise CorruptObject(f"the manifest at {self._path(name, '')} is that of job {manifest.job_id}, {manifest.name}")
        return Checkpoint.from_files(manifest, {entry.name: self._verified(name, entry) for entry in manifest.files})

    def write(self, manifest: CheckpointManifest, weights: AdapterWeights, moments: Mapping[str, Tensor]) -> CheckpointManifest:
        """Make a checkpoint durable, its manifest last, then remove all but the last ones of the job. `manifest.files` is filled in."""
        files = weights.to_peft() | {OPTIMIZER: write_tensors(moments)}
        whole = manifest.model_copy(update={"files": tuple(_entry(name, content) for name, content in sorted(files.items()))})
        for name, content in (*files.items(), (MANIFEST, whole.encode())):
            self._store.put_object(self._path(manifest.name, name), content)
        for old in self.names()[: -self._kept]:
            self._remove(old)
        return whole

    def _manifest(self, name: CheckpointName) -> CheckpointManifest:
        path = self._path(name, MANIFEST)
        try:
            return CheckpointManifest.decode(self._store.read_object(path))
        except InvalidRecord as error:
            raise CorruptObject(f"{path} is not what was written: {error}") from error

    def _verified(self, name: CheckpointName, entry: FileEntry) -> bytes:
        path = self._path(name, entry.name)
        if path not in self._store.list_objects(self._path(name, "")):
            raise CorruptObject(f"checkpoint file {path} is missing: restore it, or submit the job under another job_id to start over")
        content = self._store.read_object(path)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise CorruptObject(f"checkpoint file {path} is not what was written: restore it, or submit the job under another job_id")
        return content

    def _remove(self, name: CheckpointName) -> None:
        """The manifest goes first, so that what is left of an interrupted removal counts for nothing."""
        self._store.delete_object(self._path(name, MANIFEST))
        for path in self._store.list_objects(self._path(name, "")):
            self._store.delete_object(path)

    def _path(self, name: CheckpointName, file: str) -> str:
        return f"{self._root}/{name.attempt}/{name.step}/{file}".rstrip("/")


def folder_name(job_id: str) -> str:
    """The job_id as one safe path segment: escaped, and cut with a digest of it where that gets long."""
    safe = quote(job_id, safe="").replace(".", "%2E").replace("~", "%7E")
    return safe if len(safe) <= 100 else f"{safe[:64].rstrip('%')}-{hashlib.sha256(job_id.encode()).hexdigest()}"


def check_same_job(manifest: CheckpointManifest, job_digest: str, dataset_digest: str, base_digest: str) -> None:
    """Whether a checkpoint belongs to this very job. Raises InvalidJob naming what changed."""
    pairs = {
        "the job's settings": (manifest.job_digest, job_digest),
        "its dataset": (manifest.dataset_digest, dataset_digest),
        "the base": (manifest.base_digest, base_digest),
    }
    changed = [what for what, (before, now) in pairs.items() if before != now]
    if changed:
        raise InvalidJob(f"job {manifest.job_id} has checkpoints, but {' and '.join(changed)} changed since: use another job_id")


def _entry(name: str, content: bytes) -> FileEntry:
    return FileEntry(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
