"""A catalog log of any size, written as fast as a broker takes it: adapters as they are after their first training job."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from aiokafka import AIOKafkaProducer

from mint_stream import contracts
from mint_stream.bus import provision
from mint_stream.bus.connection import Connection
from mint_stream.bus.partitioner import murmur2_partition
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.contracts import Topic, load_topics
from mint_stream.messages.adapters import (
    CurrentClaim,
    FileEntry,
    Head,
    Manifest,
    RememberedCommand,
    Revision,
    head_key,
    revision_key,
)
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.shared import TargetShape

POOL = "smollm2-135m"
BASE_DIGEST = hashlib.sha256(b"base").hexdigest()
BORN_MS = 1_790_000_000_000
SHAPE = TargetShape(pattern="model.layers.*.self_attn.q_proj", in_features=576, out_features=576, count=30)
BASE = PoolBase(
    pool=POOL,
    base_digest=BASE_DIGEST,
    architecture="LlamaForCausalLM",
    context_tokens=8192,
    vocabulary_tokens=49152,
    targets=(SHAPE,),
    max_rank=64,
)
_BATCH_BYTES = 256 * 1024


def name_of(index: int) -> str:
    """The adapter of this index; neighbours in index are not neighbours in name."""
    return f"tenant-{index * 7919 % 9973:04d}.adapter-{index:07d}"


def digest_of(adapter_id: str, number: int) -> str:
    """The digest that revision `number` has, so that a reader can tell when it was given parts of two."""
    return hashlib.sha256(f"{adapter_id}@{number}".encode()).hexdigest()


def revision_of(adapter_id: str, number: int) -> Revision:
    """A revision as a training job leaves it."""
    digest = digest_of(adapter_id, number)
    return Revision(
        adapter_id=adapter_id,
        number=number,
        state="announced",
        digest=digest,
        pool=POOL,
        uri=f"s3://mint/adapters/{digest}/{digest[:12]}",
        base_digest=BASE_DIGEST,
        rank=8,
        size_bytes=1_108_884,
        parent=number - 1 or None,
        job_id=f"job-{digest[:16]}",
        step=200,
        announced_at_ms=BORN_MS + number,
        metrics={"loss": 0.4137},
    )


def head_of(adapter_id: str, number: int) -> Head:
    """The head that makes revision `number` production."""
    remembered = (RememberedCommand(command_id=f"c-{adapter_id}-{step}", number=number) for step in range(2))
    previous = {"previous": number - 1} if number > 1 else {}
    return Head(
        adapter_id=adapter_id,
        pool=POOL,
        next_number=number + 1,
        aliases={"production": number, "candidate": number, **previous},
        attempt=number,
        claim=CurrentClaim(job_id=f"job-{digest_of(adapter_id, number)[:16]}", attempt=number),
        commands=tuple(remembered),
    )


def records_of(adapter_id: str, number: int) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of what an announce writes: the revision, then the head."""
    yield revision_key(adapter_id, number), revision_of(adapter_id, number).encode()
    yield head_key(adapter_id), head_of(adapter_id, number).encode()


def manifest_of(adapter_id: str, number: int) -> Manifest:
    """What an announce carries."""
    return Manifest(
        digest=digest_of(adapter_id, number),
        uri=f"s3://mint/adapters/{digest_of(adapter_id, number)}/{number}",
        files=(FileEntry(name="adapter_model.safetensors", size_bytes=1_108_884, sha256=digest_of(adapter_id, 0)),),
        base_digest=BASE_DIGEST,
        targets=(SHAPE.model_copy(update={"rank": 8}),),
        parameters=276_480,
        metrics={"loss": 0.4137},
    )


@dataclass(frozen=True)
class CatalogLog:
    """The topics of a catalog on a broker, with `adapters` in it."""

    connection: Connection
    adapters: int
    partitions: int

    @classmethod
    async def ready(cls, connection: Connection, adapters: int, marks: Path) -> Self:
        """Create the topics and fill them, unless `marks` says that this was done before."""
        topics = load_topics()
        ours: dict[str, Topic] = {name: topics[name] for name in ("adapter-revisions", "adapter-commands", "adapter-events", "base-models")}
        await provision.apply(connection, ours)
        log = cls(connection, adapters, ours["adapter-revisions"].partitions)
        done = marks / "filled.json"
        if not done.exists():
            await log._fill()
            done.write_text(json.dumps({"adapters": adapters}))
        elif (known := json.loads(done.read_text())["adapters"]) != adapters:
            raise ValueError(f"the log in {marks} holds {known} adapters, not {adapters}: name another directory")
        return log

    def home(self, adapter_id: str) -> int:
        """The partition of an adapter."""
        return murmur2_partition(adapter_id.encode(), self.partitions)

    async def _fill(self) -> None:
        base = Producer(self.connection, "bench")
        await base.start()
        await base.publish_raw(Outgoing(contracts.BASE_MODELS.name(), POOL.encode(), BASE.encode()))
        await base.stop()
        async with BulkWriter(self.connection) as writer:
            for index in range(self.adapters):
                adapter_id = name_of(index)
                partition = self.home(adapter_id)
                for key, value in records_of(adapter_id, 1):
                    await writer.write(contracts.ADAPTER_REVISIONS.name(), partition, key, value)


class BulkWriter:
    """Packs records into batches itself, which costs a fifth of sending them one by one. Acknowledged when the block ends."""

    def __init__(self, connection: Connection) -> None:
        self._producer = AIOKafkaProducer(
            acks="all", enable_idempotence=True, max_batch_size=_BATCH_BYTES, max_request_size=64 * 2**20, **connection.options()
        )
        self._batches: dict[tuple[str, int], Any] = {}
        self._sent: list[asyncio.Future[Any]] = []

    async def write(self, topic: str, partition: int, key: bytes, value: bytes) -> None:
        """Pack one record."""
        place = topic, partition
        batch = self._batches.get(place)
        if batch is None or batch.append(timestamp=None, key=key, value=value) is None:
            if batch is not None:
                await self._send(place, batch)
            self._batches[place] = batch = self._producer.create_batch()
            batch.append(timestamp=None, key=key, value=value)

    async def flush(self) -> None:
        """Send what is packed and wait until all of it is acknowledged."""
        for place, batch in self._batches.items():
            await self._send(place, batch)
        self._batches = {}
        await asyncio.gather(*self._sent)
        self._sent = []

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.flush()
        await self._producer.stop()

    async def _send(self, place: tuple[str, int], batch: Any) -> None:
        self._sent.append(await self._producer.send_batch(batch, place[0], partition=place[1]))
