"""Residency: which adapters are in host memory and on the device right now, and how the others get there."""

from mint_stream.cache.backoff import Backoff
from mint_stream.cache.device import DeviceTier, Lease
from mint_stream.cache.disk import DiskTier
from mint_stream.cache.host import HostTier
from mint_stream.cache.loader import Loader
from mint_stream.cache.residents import Residents
from mint_stream.cache.source import AdapterSource
from mint_stream.cache.tally import Tally

__all__ = ["AdapterSource", "Backoff", "DeviceTier", "DiskTier", "HostTier", "Lease", "Loader", "Residents", "Tally"]
