"""Which partition a request goes to, so that it meets a worker that has its adapter. Any other is correct too, and may cost a load.

An adapter's homes are an order of all partitions: first the one where Kafka's own clients put the key adapter_id, so that a plain producer
and ours meet, then the others by rendezvous hash. Its online requests are laid over the first `spread` homes by their names, its bulk over
homes by blocks. How wide an adapter is spread stands in its head; workers tell it in every answer, and who sends next goes by that.

Laws: the homes of a spread begin with the homes of every smaller one; a request keeps its home or moves to the one that was added.
"""

import hashlib
from collections import OrderedDict
from functools import lru_cache

from mint_stream.bus.partitioner import murmur2_partition
from mint_stream.messages.inference import InferenceRequest, InferenceResult, RequestName

BULK_BLOCK = 256
"""So many bulk requests of one adapter in a row share a key, and with it a partition."""
_REMEMBERED = 65_536
"""Adapters whose spread and bulk count are known here; the one that was met the longest ago is forgotten first."""


@lru_cache(maxsize=4096)
def homes(adapter_id: str, spread: int, partitions: int) -> tuple[int, ...]:
    """The first `spread` homes of an adapter, or all when the topic has no more partitions."""
    first = murmur2_partition(adapter_id.encode(), partitions)
    others = [number for number in range(partitions) if number != first]
    others.sort(key=lambda number: _score(adapter_id, number), reverse=True)
    return (first, *others)[:spread]


def home_of(adapter_id: str, request: RequestName, spread: int, partitions: int) -> int:
    """The home that a request of (tenant, request_id) goes to."""
    return max(homes(adapter_id, spread, partitions), key=lambda number: _score("/".join(request), number))


def bulk_home(adapter_id: str, number: int, partitions: int) -> int:
    """The home of an adapter's bulk request `number`, counted from 0 by whoever sends them: one home a block, the first one first."""
    return homes(adapter_id, partitions, partitions)[number // BULK_BLOCK % partitions]


def request_key(request: InferenceRequest) -> str:
    """The record key of a request: its adapter's name without revision or alias, or the request_id when it asks the bare base."""
    return request.request_id if request.adapter is None else request.adapter.partition("@")[0]


class Routing:
    """What one process knows of where its requests go."""

    def __init__(self) -> None:
        self._spreads: OrderedDict[str, int] = OrderedDict()
        self._bulk: OrderedDict[str, int] = OrderedDict()

    def learn(self, result: InferenceResult) -> None:
        """An answer says how wide its adapter is spread."""
        served = result.served_by
        if served is None or served.adapter_id is None:
            return
        if served.spread > 1:
            _remember(self._spreads, served.adapter_id, served.spread)
        else:
            self._spreads.pop(served.adapter_id, None)

    def online(self, request: InferenceRequest, partitions: int) -> int:
        """The partition of the online lane."""
        key = request_key(request)
        return home_of(key, request.name, self._spreads.get(key, 1), partitions)

    def bulk(self, request: InferenceRequest, partitions: int) -> tuple[str, int]:
        """Key and partition of the bulk lane for the next bulk request of this adapter."""
        key = request_key(request)
        number = self._bulk.get(key, 0)
        _remember(self._bulk, key, number + 1)
        return f"{key}#{number // BULK_BLOCK}", bulk_home(key, number, partitions)


def _remember(known: OrderedDict[str, int], name: str, number: int) -> None:
    known[name] = number
    known.move_to_end(name)
    if len(known) > _REMEMBERED:
        known.popitem(last=False)


def _score(name: str, number: int) -> bytes:
    return hashlib.blake2b(f"{name}#{number}".encode(), digest_size=8).digest()
