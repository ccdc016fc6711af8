"""The checker: it finds nothing in what a right system does, and every fault that is put into that."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.bench.history import Answered, Asked, Findings, Published, check

ADAPTERS = ("a", "b")
WORKERS = ("left", "right")


@dataclass(frozen=True)
class History:
    published: list[Published]
    asked: list[Asked]
    answered: list[Answered]

    def check(self) -> Findings:
        return check(self.published, self.asked, self.answered)

    def production(self, adapter_id: str) -> list[Published]:
        return [move for move in self.published if move.adapter_id == adapter_id]


class Fleet:
    """Two workers that apply one log at their own speed, and wait until they are where a request wants them to be."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.log: list[Published] = []
        self.applied = dict.fromkeys(WORKERS, 0)
        self.history = History(self.log, [], [])
        self.clock = 0.0

    def publish(self) -> None:
        """A new revision, or production goes back to one it was."""
        adapter_id = self.random.choice(ADAPTERS)
        mine = self.history.production(adapter_id)
        number = max((move.number for move in mine), default=0) + 1
        if mine and self.random.random() < 0.2:
            number = self.random.choice(mine).number
        offset = 3 * len(self.log) + self.random.randint(0, 1)
        self.log.append(Published(adapter_id, number, f"digest {adapter_id}{number}", f"tokens {adapter_id}{number}", offset))

    def apply(self) -> None:
        worker = self.random.choice(WORKERS)
        self.applied[worker] = self.random.randint(self.applied[worker], len(self.log))

    def ask(self) -> None:
        """Asked and answered at once, or answered later: time passes in between."""
        adapter_id, worker = self.random.choice(ADAPTERS), self.random.choice(WORKERS)
        mine = self.history.production(adapter_id)
        if not mine:
            return
        position = self.random.choice([None, self.random.choice(mine).offset])
        pinned = self.random.choice([None, None, self.random.choice(mine).number])
        request = Asked(f"r-{len(self.history.asked)}", adapter_id, self.clock, position, pinned)
        wanted = position if position is not None else mine[0].offset
        while not any(move.offset >= wanted for move in self.log[: self.applied[worker]]) or not self.seen(adapter_id, worker):
            self.applied[worker] += 1
        move = next(move for move in mine if move.number == pinned) if pinned else self.seen(adapter_id, worker)[-1]
        answer = Answered(request.request_id, self.clock + self.random.random() * 3, worker, move.number, move.digest, move.witness)
        self.history.asked.append(request)
        self.history.answered.append(answer)

    def seen(self, adapter_id: str, worker: str) -> list[Published]:
        return [move for move in self.log[: self.applied[worker]] if move.adapter_id == adapter_id]

    def live(self, steps: int) -> History:
        for _ in range(steps):
            self.clock += 1
            self.random.choice([self.publish, self.apply, self.ask, self.ask])()
        return self.history


HISTORIES = st.builds(lambda random, steps: Fleet(random).live(steps), st.randoms(use_true_random=False), st.integers(1, 60))


@given(history=HISTORIES)
def test_what_a_right_fleet_does_is_clean(history: History) -> None:
    assert history.check() == Findings()


def stale(history: History, request: Asked, answer: Answered) -> Answered | None:
    """An answer of a production that was left before the position asked for."""
    line = history.production(request.adapter_id)
    before = [move for move in line if request.min_offset is not None and move.offset <= request.min_offset]
    left = [move for move in before if all(other.number != move.number for other in [before[-1], *line[len(before) :]])]
    if request.pinned is not None or not left:
        return None
    return replace(answer, number=left[0].number, digest=left[0].digest, witness=left[0].witness)


def of_another_digest(history: History, request: Asked, answer: Answered) -> Answered:
    return replace(answer, digest=f"{answer.digest} of another")


def computed_by_another(history: History, request: Asked, answer: Answered) -> Answered | None:
    """What a prefix cache that crosses a digest gives: the right name, another's tokens."""
    others = [move for move in history.published if move.digest != answer.digest]
    return replace(answer, witness=others[0].witness) if others else None


def never_published(history: History, request: Asked, answer: Answered) -> Answered:
    return replace(answer, number=10_000)


def not_the_pinned(history: History, request: Asked, answer: Answered) -> Answered | None:
    others = [move for move in history.production(request.adapter_id) if move.number != request.pinned]
    if request.pinned is None or not others:
        return None
    return replace(answer, number=others[0].number, digest=others[0].digest, witness=others[0].witness)


def an_error(history: History, request: Asked, answer: Answered) -> Answered:
    return replace(answer, error="unknown-revision")


Fault = Callable[[History, Asked, Answered], Answered | None]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (stale, "stale"),
        (of_another_digest, "mixed"),
        (computed_by_another, "mixed"),
        (never_published, "mixed"),
        (not_the_pinned, "mixed"),
        (an_error, "errors"),
    ],
)
@given(history=HISTORIES, choice=st.randoms(use_true_random=False))
def test_one_fault_in_one_answer_is_found(fault: Fault, kind: str, history: History, choice: Random) -> None:
    pairs = list(zip(history.asked, history.answered, strict=True))
    choice.shuffle(pairs)
    for request, answer in pairs:
        wrong = fault(history, request, answer)
        if wrong is not None:
            history.answered[history.answered.index(answer)] = wrong
            found = history.check()
            assert found.counts[kind] == 1 and not found.clean
            assert request.request_id in getattr(found, kind)[0]
            return


@given(history=HISTORIES, choice=st.randoms(use_true_random=False))
def test_an_answer_that_never_came_is_found(history: History, choice: Random) -> None:
    if history.answered:
        gone = history.answered.pop(choice.randrange(len(history.answered)))
        assert [sentence.split()[0] for sentence in history.check().unanswered] == [gone.request_id]


LINE = [Published("a", number, f"d{number}", f"t{number}", 10 * number) for number in (1, 2, 3)]


def told(number: int, at: float, asked_at: float, worker: str = "left", **fields: object) -> tuple[Asked, Answered]:
    name = f"r-{number}-{at}"
    return Asked(name, "a", asked_at, **fields), Answered(name, at, worker, number, f"d{number}", f"t{number}")


def found(*pairs: tuple[Asked, Answered], line: list[Published] = LINE) -> Findings:
    return check(line, [request for request, _ in pairs], [answer for _, answer in pairs])


def test_a_worker_that_goes_back_after_it_told_of_a_newer_production_is_found() -> None:
    assert found(told(3, at=2, asked_at=1), told(2, at=4, asked_at=3)).counts["backwards"] == 1


def test_going_back_is_only_that_for_one_worker_one_adapter_and_who_had_the_answer() -> None:
    newer = told(3, at=2, asked_at=1)
    assert found(newer, told(2, at=4, asked_at=3, worker="right")).clean, "the other worker may be behind"
    assert found(newer, told(2, at=4, asked_at=1.5)).clean, "it was asked before the answer was there"
    assert found(newer, told(2, at=4, asked_at=3, pinned=2)).clean, "it was named"
    rolled_back = [*LINE, replace(LINE[1], offset=40)]
    assert found(newer, told(2, at=4, asked_at=3), line=rolled_back).clean, "production went back itself"
    assert found(newer, told(1, at=4, asked_at=3), line=rolled_back).counts["backwards"] == 1


def test_a_position_between_two_moves_asks_for_the_earlier_one() -> None:
    assert found(told(2, at=2, asked_at=1, min_offset=29)).clean
    assert found(told(2, at=2, asked_at=1, min_offset=30)).counts["stale"] == 1
    assert found(told(1, at=2, asked_at=1, min_offset=5)).clean


def test_of_two_answers_the_first_counts() -> None:
    request, answer = told(2, at=2, asked_at=1)
    later = replace(answer, at=3, number=9)
    assert check(LINE, [request], [answer, later]).clean
    assert check(LINE, [request], [later, answer]).counts["mixed"] == 1
