"""Which lane a request goes in: a tenant that holds its share of the online window has further requests moved to the bulk lane."""

from dataclasses import dataclass

from mint_stream import contracts
from mint_stream.bus.intake import Delivery
from mint_stream.bus.producer import Producer
from mint_stream.bus.routing import Routing
from mint_stream.messages.inference import InferenceRequest
from mint_stream.workers.answers import trace_of
from mint_stream.workers.canary_tallies import CanaryTallies
from mint_stream.workers.quarantine import QuarantineReports
from mint_stream.workers.shares import TenantShares


class Lanes:
    """Takes requests into the online lane, or moves them to the bulk lane: acknowledged there before they close here."""

    def __init__(self, producer: Producer, pool: str, shares: TenantShares, default_deadline_s: float) -> None:
        """A moved request without a deadline keeps the one that counts from its arrival here."""
        self._producer = producer
        self._pool = pool
        self._shares = shares
        self._routing = Routing()
        self._default_deadline_s = default_deadline_s
        self._bulk_topic = contracts.INFERENCE_BATCH.name(pool)
        self.moved = 0
        """Requests moved so far."""

    def enter(self, request: InferenceRequest, delivery: Delivery) -> bool:
        """Whether the request may be worked on here; then `leave` must follow. Requests of the bulk lane always may."""
        return delivery.topic == self._bulk_topic or self._shares.take(request.tenant)

    def leave(self, request: InferenceRequest, delivery: Delivery) -> None:
        """The request is closed, or not ours any more."""
        if delivery.topic != self._bulk_topic:
            self._shares.release(request.tenant)

    async def move(self, request: InferenceRequest, delivery: Delivery) -> None:
        """Write the request to the bulk lane. Raises BusUnavailable."""
        deadline_at_ms = request.deadline_at_ms
        if deadline_at_ms is None:
            deadline_at_ms = delivery.timestamp_ms + int(self._default_deadline_s * 1000)
        moved = request.model_copy(update={"deadline_at_ms": deadline_at_ms})
        key, home = self._routing.bulk(request, await self._producer.partitions(contracts.INFERENCE_BATCH, self._pool))
        self.moved += 1
        lane, trace = contracts.INFERENCE_BATCH, trace_of(delivery.headers)
        await self._producer.publish(lane, moved, key, pool=self._pool, partition=home, headers=trace)


@dataclass(frozen=True)
class Consequences:
    """What a request may lead to besides its answer: its revision is reported to the registrar, it counts for or against a canary,
    or it is moved to the bulk lane."""

    quarantine: QuarantineReports
    lanes: Lanes
    tallies: CanaryTallies
