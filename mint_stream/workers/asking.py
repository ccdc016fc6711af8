"""Items asked of a revision: ordinary requests of the bulk lane, pinned to it, answered by whichever worker serves its pool."""

from collections.abc import Sequence

from mint_stream.errors import DeadlineExceeded, ReplyTimeout
from mint_stream.messages.inference import InferenceRequest, InferenceResult, Sampling
from mint_stream.messages.shared import ErrorBody
from mint_stream.promotion.items import Item
from mint_stream.workers.insisting import Insisting
from mint_stream.workers.open_trials import OpenTrial

TENANT = "mint-stream-evaluate"
_SILENCE = (ReplyTimeout.code, DeadlineExceeded.code)


class Asking:
    """Asks for any number of trials.

    The id of a request says trial, revision and item, so a question asked again by whoever takes the trial over is the same request."""

    def __init__(self, insisting: Insisting) -> None:
        self._insisting = insisting

    async def answers(self, of: OpenTrial, number: int, items: Sequence[Item], purpose: str) -> tuple[str | None, ...]:
        """What the revision says to each item; None where it answered by an error.

        Raises DeadlineExceeded when the pool has not answered in time for as long as it is insisted."""
        found = await self._insisting.answers(
            of.pool, (self._request(of, number, place, item, purpose) for place, item in enumerate(items))
        )
        if late := next((one for one in found if isinstance(one, ErrorBody) and one.code in _SILENCE), None):
            raise DeadlineExceeded(
                f"the trial's questions are not answered in time: {late.message}; serve pool {of.pool}, or allow fewer tokens"
            )
        return tuple(one.text or "" if isinstance(one, InferenceResult) else None for one in found)

    def _request(self, of: OpenTrial, number: int, place: int, item: Item, purpose: str) -> InferenceRequest:
        return InferenceRequest(
            request_id=f"{purpose}/{of.name}/{number}/{place}",
            tenant=TENANT,
            adapter=f"{of.adapter_id}@{number}",
            sampling=Sampling(max_tokens=of.gate.max_tokens),
            min_catalog_position=of.position,
            **item.question,
        )
