"""Residency: which adapters are in host memory and on the device right now, and how the others get there."""

from mint_stream.cache.device import DeviceTier, Lease
from mint_stream.cache.host import HostTier
from mint_stream.cache.loader import Backoff, Loader
from mint_stream.cache.lru import ByteLru
from mint_stream.cache.source import AdapterSource

__all__ = ["AdapterSource", "Backoff", "ByteLru", "DeviceTier", "HostTier", "Lease", "Loader"]
