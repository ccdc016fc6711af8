"""What the serve role's settings become: the limits and tiers of its parts."""

import torch

from mint_stream.bus.intake import IntakeLimits
from mint_stream.cache.device import DeviceTier
from mint_stream.cache.disk import DiskTier
from mint_stream.cache.host import HostTier
from mint_stream.cache.loader import Loader
from mint_stream.cache.source import AdapterSource
from mint_stream.cache.tally import Tally
from mint_stream.engine.batcher import Budgets
from mint_stream.errors import InvalidSettings
from mint_stream.messages.fleet import PoolBase
from mint_stream.metrics import Metrics
from mint_stream.model.base import ResidentBase
from mint_stream.settings import ServingSettings, Settings
from mint_stream.store import Store
from mint_stream.workers.admission import AdmissionLimits

KV_SHARE = 0.75
"""Of what the base and the device tier leave; passes need the rest."""


def pool_base(base: ResidentBase, settings: Settings) -> PoolBase:
    """The record by which the pool is founded."""
    return PoolBase(
        pool=settings.pool_name,
        base_digest=base.digest,
        architecture=base.architecture,
        context_tokens=min(base.context_tokens, settings.serving.context_tokens),
        vocabulary_tokens=base.vocabulary_tokens,
        targets=base.targets(),
        max_rank=settings.serving.max_rank,
    )


def chosen_device(settings: Settings) -> torch.device:
    """Where the base goes. Raises InvalidSettings for a GPU that is not there."""
    there = torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        raise InvalidSettings("MINT_DEVICE is cuda, and torch sees no CUDA device here: unset it, or run this worker where a GPU is")
    return torch.device("cuda", torch.cuda.current_device()) if there and settings.device != "cpu" else torch.device("cpu")


def kv_cache_bytes(base: ResidentBase, serving: ServingSettings, training_bytes: int = 0) -> int | None:
    """For pages of keys and values on the base's device; None where they are kept in slots, on CPUs. `training_bytes` are left free."""
    if base.device.type == "cpu":
        return None
    if serving.kv_cache_bytes is not None:
        return serving.kv_cache_bytes
    free, _ = torch.cuda.mem_get_info(base.device)
    return int(KV_SHARE * max(0, free - serving.device_tier_bytes - training_bytes))


def budgets(serving: ServingSettings) -> Budgets:
    """How much one step may hold."""
    return Budgets(
        max_num_seqs=serving.max_num_seqs,
        max_num_batched_tokens=serving.max_num_batched_tokens,
        max_adapters=serving.max_adapters_per_step,
    )


def admission_limits(founded: PoolBase, serving: ServingSettings) -> AdmissionLimits:
    """What a request may ask for."""
    return AdmissionLimits(founded.context_tokens, serving.default_deadline_s, serving.max_deadline_s)


def intake_limits(serving: ServingSettings) -> IntakeLimits:
    """How much may be taken from Kafka and not yet answered."""
    return IntakeLimits(max_records=serving.intake_records, max_bytes=serving.intake_bytes)


def loader(base: ResidentBase, founded: PoolBase, settings: Settings, metrics: Metrics | None = None) -> Loader:
    """All tiers, for adapters of this base up to the rank that its pool was founded with."""
    serving, form, metrics = settings.serving, base.block_form, metrics or Metrics()
    disk_path = settings.home / "disk-tier"
    disk = DiskTier(disk_path, serving.disk_tier_bytes, form, Tally("disk", metrics)) if serving.disk_tier_bytes else None
    store = Store(settings.store_uri, settings.store.options)
    source = AdapterSource(store, base.layers, founded.max_rank, form, disk, Tally("store", metrics))
    host = HostTier(serving.host_tier_bytes, Tally("host", metrics))
    device = DeviceTier(serving.device_tier_bytes, base.device, Tally("device", metrics))
    return Loader(source, host, device, serving.load_parallelism)
