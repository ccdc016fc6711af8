"""Grading in a process of its own."""

import pytest

from mint_stream.errors import InvalidDataset, InvalidRule
from mint_stream.promotion.grading import AnsweredItem
from mint_stream.promotion.items import Item
from mint_stream.workers.grading import scores_of


def answered(text: str, answer: str) -> AnsweredItem:
    return AnsweredItem(text=text, item=Item(prompt="?", answer=answer))


async def test_scores_come_in_the_order_of_the_answers() -> None:
    assert await scores_of("contains", [answered("a cat", "cat"), answered("a dog", "cat"), answered("cat", "cat")]) == (1, 0, 1)
    assert await scores_of("contains", []) == ()


async def test_what_the_grader_refuses_is_raised_as_it_was_there() -> None:
    with pytest.raises(InvalidDataset, match="no pattern"):
        await scores_of("regex", [answered("x", "(")])
    with pytest.raises(InvalidRule, match="no grader"):
        await scores_of("no-such", [answered("x", "y")])


async def test_a_pattern_that_takes_for_ever_is_ended() -> None:
    with pytest.raises(InvalidRule, match="took more than"):
        await scores_of("regex", [answered("ok", "ok"), answered("a" * 64 + "!", "^(a+)+$")], patience_s=10)
