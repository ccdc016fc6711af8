"""Graders: named functions from an answer and its item to a score in [0, 1]. Gates use them, and so may rollouts.

`exact-match`          the answer, spaces around it aside
`contains`             the item's answer is part of what was said
`regex`                the item's answer, as a pattern, is found in what was said
`reasoning-gym:TASK`   the task's own score; the item's metadata is that of the entry. Needs the extra `tasks`
any other              what an installed package offers under that name as an entry point of the group `mint_stream.graders`

Custom graders are installed by whoever runs the evaluator, never named by a path in a record: a record must not be able to run code.
"""

import importlib
import math
import re
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

from mint_stream.errors import InvalidDataset, InvalidRule, MissingExtra
from mint_stream.promotion.items import Item

Grader = Callable[[str, Item], float]

GROUP = "mint_stream.graders"
REASONING_GYM = "reasoning-gym"
LONGEST_PATTERN = 1000


def named(name: str) -> Grader:
    """The grader of this name. Raises InvalidRule when there is none, MissingExtra when its package is not installed."""
    kind, _, task = name.partition(":")
    if kind == REASONING_GYM:
        return _reasoning_gym(task)
    if task:
        raise InvalidRule(f"grader {kind} takes nothing after a colon; only {REASONING_GYM} does, the name of a task")
    return _BUILT_IN.get(kind) or _installed(kind)


def check(name: str, items: Sequence[Item]) -> Grader:
    """The grader, if it can grade these items. Raises as `named`, and InvalidDataset naming the first item that it cannot grade."""
    grader = named(name)
    for number, item in enumerate(items, start=1):
        try:
            grade(grader, item.answer, item)
        except InvalidDataset as error:
            raise InvalidDataset(f"item {number}: {error}") from error
    return grader


def grade(grader: Grader, text: str, item: Item) -> float:
    """The score, in [0, 1]. Raises InvalidDataset for an item that the grader cannot use."""
    try:
        score = float(grader(text, item))
    except InvalidDataset:
        raise
    except Exception as error:  # a grader may be anybody's, and an item anything
        raise InvalidDataset(f"the grader raised {type(error).__name__}: {error}") from error
    if not 0 <= score <= 1 or math.isnan(score):
        raise InvalidDataset(f"the grader gave {score}, which is no score: it must lie in [0, 1]")
    return score


def exact_match(text: str, item: Item) -> float:
    """1 for the answer itself, spaces around either aside."""
    return float(text.strip() == item.answer.strip())


def contains(text: str, item: Item) -> float:
    """1 when the answer is part of the text."""
    return float(item.answer in text)


def regex(text: str, item: Item) -> float:
    """1 when the pattern is found."""
    if len(item.answer) > LONGEST_PATTERN:
        raise InvalidDataset(f"a pattern of {len(item.answer)} characters is longer than {LONGEST_PATTERN}")
    try:
        return float(re.search(item.answer, text) is not None)
    except re.error as error:
        raise InvalidDataset(f"{item.answer!r} is no pattern: {error}") from error


_BUILT_IN: dict[str, Grader] = {"exact-match": exact_match, "contains": contains, "regex": regex}


def _installed(name: str) -> Grader:
    for found in entry_points(group=GROUP, name=name):
        grader: Grader = found.load()
        return grader
    offered = sorted({*_BUILT_IN, f"{REASONING_GYM}:TASK", *(one.name for one in entry_points(group=GROUP))})
    raise InvalidRule(f"there is no grader {name!r}: choose one of {', '.join(offered)}")


def _reasoning_gym(task: str) -> Grader:
    try:
        score_answer = reasoning_gym().get_score_answer_fn(task)
    except ValueError as error:
        raise InvalidRule(f"grader {REASONING_GYM}: {error}") from error

    def score(text: str, item: Item) -> float:
        return float(score_answer(text.strip(), {"question": item.prompt, "answer": item.answer, "metadata": item.metadata}))

    return score


def reasoning_gym() -> Any:
    """The package. Raises MissingExtra."""
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise MissingExtra("reasoning-gym is not installed: install mint-stream[tasks]") from error
