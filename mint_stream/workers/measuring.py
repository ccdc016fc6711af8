"""From the terms of a gate to scores: read the dataset, ask both revisions, grade what they said."""

import asyncio
from collections.abc import Callable, Sequence

from mint_stream.errors import InvalidDataset, InvalidRequest
from mint_stream.promotion.gate import Scores
from mint_stream.promotion.grading import AnsweredItem
from mint_stream.promotion.items import Item, read_items
from mint_stream.workers.asking import Asking
from mint_stream.workers.grading import scores_of
from mint_stream.workers.open_trials import OpenTrial

ReadDataset = Callable[[str], bytes]
"""Gives the bytes at a uri. Raises UriNotAllowed, InvalidRequest or StoreUnavailable."""


class Measuring:
    """Scores a trial's candidate, and production beside it, on the items of a dataset."""

    def __init__(self, asking: Asking, read: ReadDataset) -> None:
        self._asking = asking
        self._read = read

    async def scores(self, of: OpenTrial, dataset_uri: str, purpose: str) -> Scores:
        """An item that the candidate answers by an error scores 0; one that only production cannot answer counts for neither.

        Raises what reading and grading raise."""
        items = await asyncio.to_thread(self._items, dataset_uri)
        candidate = await self._scored(of, of.trial.number, items, purpose)
        if of.production is None:
            return Scores(tuple(score or 0.0 for score in candidate))
        production = await self._scored(of, of.production, items, purpose)
        pairs = [(ours or 0.0, theirs) for ours, theirs in zip(candidate, production, strict=True) if theirs is not None]
        return Scores(tuple(ours for ours, _ in pairs), tuple(theirs for _, theirs in pairs))

    def _items(self, uri: str) -> tuple[Item, ...]:
        try:
            return read_items(self._read(uri))
        except (InvalidRequest, InvalidDataset) as error:
            raise InvalidDataset(f"{uri}: {error}") from error

    async def _scored(self, of: OpenTrial, number: int, items: Sequence[Item], purpose: str) -> list[float | None]:
        texts = await self._asking.answers(of, number, items, purpose)
        answered = [AnsweredItem(text=text, item=item) for text, item in zip(texts, items, strict=True) if text is not None]
        scores = iter(await scores_of(of.gate.grader, answered))
        return [None if text is None else next(scores) for text in texts]
