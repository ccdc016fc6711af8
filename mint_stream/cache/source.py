"""Where adapters come from: the store's files of a revision, verified, parsed, checked against the base, laid out for the kernels."""

from collections.abc import Mapping

import torch

from mint_stream.adapter import AdapterBlock, AdapterWeights, LayerShape
from mint_stream.errors import AdapterNotLoaded, AdapterUnloadable, CorruptObject, MintError, RevisionRetired
from mint_stream.messages.adapters import Revision
from mint_stream.store import Store

MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What reading bytes raises when the bytes are wrong."""


class AdapterSource:
    """Reads revisions for one base. `layers` has the shapes of all an adapter may target there by path."""

    def __init__(self, store: Store, layers: Mapping[str, LayerShape], max_rank: int, dtype: torch.dtype = torch.float32) -> None:
        self._store = store
        self._layers = layers
        self._max_rank = max_rank
        self._dtype = dtype

    def block(self, revision: Revision) -> AdapterBlock:
        """The revision's block on the CPU. Blocks; call it in a thread.

        Raises StoreUnavailable or AdapterNotLoaded (try again), or for good, wherever it is tried: CorruptObject, InvalidAdapter,
        BaseMismatch, RevisionRetired, AdapterUnloadable. Each message names the revision.
        """
        name = f"{revision.adapter_id}@{revision.number}"
        if revision.uri is None:
            raise RevisionRetired(f"{name} is retired: its files are gone")
        try:
            return self._built(revision.uri, revision.digest)
        except MintError as error:
            raise type(error)(f"{name}: {error}") from error
        except Exception as error:  # out of memory, threads or files: this machine's trouble, which says nothing about the revision
            raise AdapterNotLoaded(f"{name} could not be loaded here: {type(error).__name__}: {error}") from error

    def _built(self, uri: str, digest: str) -> AdapterBlock:
        weights = _parsed(self._store.read_revision(uri))
        if weights.digest != digest:
            raise CorruptObject(f"{uri} holds an adapter of digest {weights.digest[:12]}, announced as {digest[:12]}")
        weights.check_layers(self._layers, self._max_rank)
        return AdapterBlock.build(weights, self._dtype)


def _parsed(files: Mapping[str, bytes]) -> AdapterWeights:
    try:
        return AdapterWeights.from_files(files)
    except MALFORMED as error:
        raise AdapterUnloadable(f"its files could not be read: {type(error).__name__}: {error}") from error
