"""Where adapters come from: this machine's disk if they were here before, else the store's files of a revision, verified, parsed, laid out
for the kernels. From either they are checked against the base."""

import time
from collections.abc import Mapping

import torch

from mint_stream.adapter import AdapterBlock, AdapterWeights, BlockForm, LayerShape
from mint_stream.adapter.targets import check_layers
from mint_stream.cache.disk import DiskTier
from mint_stream.cache.tally import Tally
from mint_stream.errors import AdapterNotLoaded, AdapterUnloadable, CorruptObject, DeviceLost, MintError, RevisionRetired
from mint_stream.messages.adapters import Revision
from mint_stream.store import Store

MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What reading bytes raises when the bytes are wrong."""
PLAIN = BlockForm()
OUT_OF_MEMORY = 2
"""CUDA's number for it."""


class AdapterSource:
    """Reads revisions for one base. `layers` has the shapes of all an adapter may target there by path."""

    def __init__(
        self,
        store: Store,
        layers: Mapping[str, LayerShape],
        max_rank: int,
        form: BlockForm = PLAIN,
        disk: DiskTier | None = None,
        tally: Tally | None = None,
    ) -> None:
        """`disk` is of the same form."""
        self._store = store
        self._layers = layers
        self._max_rank = max_rank
        self._form = form
        self.disk = disk
        self.tally = tally or Tally("store")

    def block(self, revision: Revision) -> AdapterBlock:
        """The revision's block on the CPU. Blocks; call it in a thread.

        Raises StoreUnavailable or AdapterNotLoaded (try again), or for good, wherever it is tried: CorruptObject, InvalidAdapter,
        BaseMismatch, RevisionRetired, AdapterUnloadable. Each message names the revision. Raises DeviceLost for a device that is gone.
        """
        name = f"{revision.adapter_id}@{revision.number}"
        if revision.uri is None:
            raise RevisionRetired(f"{name} is retired: its files are gone")
        try:
            return self._from_disk(revision.digest) or self._built(revision.uri, revision.digest)
        except MintError as error:
            raise type(error)(f"{name}: {error}") from error
        except torch.AcceleratorError as error:
            if getattr(error, "error_code", None) == OUT_OF_MEMORY:
                raise AdapterNotLoaded(f"{name} could not be loaded here: {error}") from error
            raise DeviceLost(f"{name} could not be laid out for the device: {error}; restart the worker") from error
        except Exception as error:  # out of memory, threads or files: this machine's trouble, which says nothing about the revision
            raise AdapterNotLoaded(f"{name} could not be loaded here: {type(error).__name__}: {error}") from error

    def keep_on_disk(self, block: AdapterBlock) -> None:
        """Have the block at hand the next time, unless it is. Blocks; never raises."""
        if self.disk is not None and block.digest not in self.disk:
            self.disk.write(block)

    def close(self) -> None:
        """Let go of the disk tier's directory."""
        if self.disk is not None:
            self.disk.close()

    def _from_disk(self, digest: str) -> AdapterBlock | None:
        """Verified when it was written; whether it fits this base, which may be another than the writer's, is asked anew."""
        block = None if self.disk is None else self.disk.read(digest)
        if block is not None:
            check_layers({path: _shape_and_rank(*shape) for path, shape in block.shapes.items()}, self._layers, self._max_rank)
        return block

    def _built(self, uri: str, digest: str) -> AdapterBlock:
        begun = time.perf_counter()
        weights = _parsed(self._read(uri))
        if weights.digest != digest:
            raise CorruptObject(f"{uri} holds an adapter of digest {weights.digest[:12]}, announced as {digest[:12]}")
        weights.check_layers(self._layers, self._max_rank)
        block = AdapterBlock.build(weights, self._form.dtype, pin=self._form.pinned)
        self.tally.loaded(time.perf_counter() - begun)
        return block

    def _read(self, uri: str) -> Mapping[str, bytes]:
        try:
            files = self._store.read_revision(uri)
        except Exception:
            self.tally.looked(found=False)
            raise
        self.tally.looked(found=True)
        return files


def _shape_and_rank(rows: int, width: int, height: int, experts: int) -> tuple[LayerShape, int]:
    return ((width, height, experts) if experts else (width, height)), rows // max(1, experts)


def _parsed(files: Mapping[str, bytes]) -> AdapterWeights:
    try:
        return AdapterWeights.from_files(files)
    except MALFORMED as error:
        raise AdapterUnloadable(f"its files could not be read: {type(error).__name__}: {error}") from error
