"""Grades in a process of its own: a pattern may take for ever, and a grader that somebody installed may do anything.

python -m mint_stream.promotion.grading NAME      stdin: an AnsweredItem a line      stdout: a Grade a line, in the same order
"""

import sys
from collections.abc import Iterable, Iterator

from mint_stream.errors import MintError
from mint_stream.messages.record import Record
from mint_stream.messages.shared import ErrorBody
from mint_stream.promotion.graders import grade, named
from mint_stream.promotion.items import Item


class AnsweredItem(Record):
    """What was said to an item."""

    text: str
    item: Item


class Grade(Record):
    """The score, or why there is none."""

    score: float | None = None
    error: ErrorBody | None = None


def grades(name: str, lines: Iterable[bytes]) -> Iterator[Grade]:
    """A grade for each line. The grader is looked for once there is something to grade."""
    for line in lines:
        try:
            answered = AnsweredItem.decode(line)
            yield Grade(score=grade(named(name), answered.text, answered.item))
        except MintError as error:
            yield Grade(error=ErrorBody.of(error))


def main() -> None:
    """Grade what comes in until it ends."""
    for one in grades(sys.argv[1], sys.stdin.buffer):
        sys.stdout.buffer.write(one.encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
