"""What a revision is asked and how the answer is known: JSON lines, each `{"prompt": ...}` or `{"messages": [...]}` with an `"answer"`.

`metadata` is for graders that need more than the answer, e.g. an entry of reasoning-gym. A dataset is read whole before anything is asked:
the first line that cannot be used raises InvalidDataset with its number.
"""

from codecs import BOM_UTF8
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from mint_stream.errors import InvalidDataset
from mint_stream.messages.inference import ChatMessage
from mint_stream.messages.record import Record

MOST_ITEMS = 10_000


class Item(Record):
    """One question with its answer. What the answer means is the grader's: a text, a part of one, a pattern."""

    prompt: str | None = Field(default=None, min_length=1)
    messages: tuple[ChatMessage, ...] | None = Field(default=None, min_length=1)
    answer: str
    metadata: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        return self

    @property
    def question(self) -> dict[str, Any]:
        """The field of an InferenceRequest that asks it."""
        return {"prompt": self.prompt} if self.prompt is not None else {"messages": self.messages}


def read_items(text: bytes) -> tuple[Item, ...]:
    """Every line of `text`. Blank lines and a byte order mark are skipped. Raises InvalidDataset."""
    items: list[Item] = []
    for number, line in enumerate(text.removeprefix(BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            items.append(_item(number, line))
    if not items:
        raise InvalidDataset("the dataset has no lines")
    if len(items) > MOST_ITEMS:
        raise InvalidDataset(f"the dataset has {len(items)} lines, and every one is asked: give at most {MOST_ITEMS}")
    return tuple(items)


def _item(number: int, line: bytes) -> Item:
    try:
        return Item.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "value"
        raise InvalidDataset(f"line {number}: {where}: {first['msg']}") from error
