"""Results of submitted requests, collected from `inference-results`."""

import asyncio

from mint_stream import contracts
from mint_stream.bus.producer import Producer
from mint_stream.bus.routing import Routing, request_key
from mint_stream.bus.table import LogRecord
from mint_stream.client.feed import Feed, Place
from mint_stream.client.partitions import Partitions
from mint_stream.client.requests import Ticket
from mint_stream.errors import ReplyTimeout, RequestConflict
from mint_stream.messages.inference import InferenceRequest, InferenceResult, request_digest


class Results:
    """Sends requests whose results go to the fleet's own topic, and finds a result by its ticket."""

    def __init__(self, producer: Producer, partitions: Partitions, pool: str, routing: Routing) -> None:
        self._routing = routing
        self._producer = producer
        self._partitions = partitions
        self._pool = pool

    async def submit(self, request: InferenceRequest) -> Ticket:
        """Produce the request. The ticket says where its result cannot stand before."""
        topic = contracts.INFERENCE_RESULTS.name()
        partition = await self._partitions.of(topic, request.request_id)
        offset = await self._partitions.end(topic, partition)
        home = self._routing.online(request, await self._producer.partitions(contracts.INFERENCE_REQUESTS, self._pool))
        await self._producer.publish(contracts.INFERENCE_REQUESTS, request, request_key(request), pool=self._pool, partition=home)
        tenant, request_id = request.name
        return Ticket(request_id=request_id, tenant=tenant, request_digest=request_digest(request), partition=partition, offset=offset)

    async def collect(self, ticket: Ticket, timeout_s: float) -> InferenceResult:
        """The first terminal record of the request. Raises RequestConflict when it answers another body, and ReplyTimeout."""
        place = Place(contracts.INFERENCE_RESULTS.name(), offsets={ticket.partition: ticket.offset})
        return checked(ticket, await self._first(place, ticket.request_id, ticket.tenant, timeout_s))

    async def find(self, request_id: str, tenant: str, timeout_s: float) -> InferenceResult:
        """The first terminal record of a request of which nothing else is known: as far back as results are kept. Raises ReplyTimeout."""
        return await self._first(Place(contracts.INFERENCE_RESULTS.name(), request_id), request_id, tenant, timeout_s)

    async def _first(self, place: Place, request_id: str, tenant: str, timeout_s: float) -> InferenceResult:
        feed = Feed(self._partitions, place, lambda record: _result_of(request_id, tenant, record))
        try:
            async with asyncio.timeout(timeout_s), feed:
                result = await anext(feed)
        except TimeoutError as error:
            raise ReplyTimeout(
                f"no result of request {request_id} in {timeout_s:g} s: is a serving worker of pool {self._pool} running "
                "(`mint-stream serve`)?"
            ) from error
        self._routing.learn(result)
        return result


def checked(ticket: Ticket, result: InferenceResult) -> InferenceResult:
    """The result, if it answers the request of the ticket. Raises RequestConflict."""
    if result.request_digest != ticket.request_digest:
        raise RequestConflict(f"request {ticket.request_id} was used before with another body; choose a new request_id")
    return result


def _result_of(request_id: str, tenant: str, record: LogRecord) -> InferenceResult | None:
    """The record as a result of this request; None for others', also for another tenant's under the same id."""
    if record.key != request_id.encode():
        return None
    result = InferenceResult.decode(record.value)
    return result if result.tenant == tenant else None
