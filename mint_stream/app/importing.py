"""An adapter trained elsewhere becomes a revision: read, checked against the pool's base, stored, then announced like any other."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from mint_stream.adapter import CONFIG_FILE, TENSORS_FILE, AdapterWeights
from mint_stream.client import Client
from mint_stream.errors import InvalidAdapter
from mint_stream.messages.adapters import AdapterEvent, Manifest, PromotionRule
from mint_stream.messages.fleet import PoolBase
from mint_stream.settings import Settings
from mint_stream.store import Store, read_uri

MAX_FILE_BYTES = 2 * 2**30


async def import_adapter(
    client: Client, settings: Settings, adapter_id: str, source: str, *, promotion: PromotionRule | None = None, timeout_s: float = 30.0
) -> AdapterEvent:
    """Publish the PEFT adapter at `source`, a directory or a uri, as the adapter's next revision.

    Raises InvalidAdapter, BaseMismatch, UriNotAllowed, BaseUnusable (the pool has no base yet), CommandRejected, ReplyTimeout."""
    base = await client.pool_base()
    files = await asyncio.to_thread(read_files, source, settings)
    return await publish(client, settings, adapter_id, AdapterWeights.from_files(files), base, promotion, timeout_s)


async def publish(
    client: Client,
    settings: Settings,
    adapter_id: str,
    weights: AdapterWeights,
    base: PoolBase,
    promotion: PromotionRule | None = None,
    timeout_s: float = 30.0,
) -> AdapterEvent:
    """Check adapter weights against the base, make their files durable, announce them. Raises as `import_adapter`."""
    weights.check(base.targets, base.max_rank)
    manifest = await asyncio.to_thread(store_files, Store(settings.store_uri, settings.store.options), weights, base.base_digest)
    return await client.announce(adapter_id, manifest, promotion=promotion, timeout_s=timeout_s)


def store_files(store: Store, weights: AdapterWeights, base_digest: str) -> Manifest:
    """Put the adapter's canonical files into the store."""
    return store.put_revision(
        weights.to_peft(), digest=weights.digest, base_digest=base_digest, targets=weights.targets(), parameters=weights.parameters
    )


def read_files(source: str, settings: Settings) -> Mapping[str, bytes]:
    """PEFT's files by name. A path is the caller's own; a uri must lie below the allowed roots. Raises InvalidAdapter, UriNotAllowed."""
    if "://" not in source:
        return _read_directory(Path(source).expanduser())
    roots = (settings.store_uri, *settings.store.allowed_roots)
    return {
        name: read_uri(f"{source.rstrip('/')}/{name}", roots, MAX_FILE_BYTES, settings.store.options)
        for name in (CONFIG_FILE, TENSORS_FILE)
    }


def _read_directory(path: Path) -> Mapping[str, bytes]:
    if not path.is_dir():
        raise InvalidAdapter(f"{path} is not a directory: name the one with {CONFIG_FILE} in it, or a uri")
    # Other names are kept, empty: a pickle beside the config is then refused by its name.
    return {file.name: file.read_bytes() if file.name in (CONFIG_FILE, TENSORS_FILE) else b"" for file in sorted(path.iterdir())}
