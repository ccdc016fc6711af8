"""A checker of histories: what was published, what was asked, what was answered, and whether the answers keep what the system promises.

- An answer is of a revision that production was at the position asked for, or later.       else: stale
- Its number, its digest and what it computes are of one publish; a pinned request's number is the pinned one.       else: mixed
- Of one adapter, one worker never answers with an older production to whoever had its newer one before asking.       else: backwards
- Every request has an answer, and it is no error.       else: unanswered, errors

Pure: no clock, no input. Times are of one clock, in any unit. Positions of one adapter lie in one partition.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """From `offset` of the catalog on, production of the adapter was this revision, which computes `witness`."""

    adapter_id: str
    number: int
    digest: str
    witness: str
    offset: int


@dataclass(frozen=True)
class Asked:
    """A request. `min_offset`: the catalog position it carried, if it did; `pinned`: the number it named, else it was for production."""

    request_id: str
    adapter_id: str
    at: float
    min_offset: int | None = None
    pinned: int | None = None


@dataclass(frozen=True)
class Answered:
    """The answer of a request. `error` is its code; else the rest says who answered what."""

    request_id: str
    at: float
    worker_id: str = ""
    number: int = 0
    digest: str = ""
    witness: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Findings:
    """What is wrong with a history, a sentence each."""

    stale: tuple[str, ...] = ()
    mixed: tuple[str, ...] = ()
    backwards: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {kind: len(found) for kind, found in vars(self).items()}

    @property
    def clean(self) -> bool:
        """Whether there is nothing wrong."""
        return not any(self.counts.values())


class _Line:
    """One adapter's production over time: place n is its n-th move."""

    def __init__(self, moves: Iterable[Published]) -> None:
        self.moves = sorted(moves, key=lambda move: move.offset)
        self._offsets = [move.offset for move in self.moves]
        self._places: defaultdict[int, list[int]] = defaultdict(list)
        for place, move in enumerate(self.moves):
            self._places[move.number].append(place)

    def place_at(self, offset: int) -> int:
        """The move in effect at an offset; -1 before the first."""
        return bisect_right(self._offsets, offset) - 1

    def first(self, number: int) -> int:
        """When production first was this revision; -1 when it never was."""
        return self._places[number][0] if number in self._places else -1

    def last(self, number: int) -> int:
        """When production last became this revision; -1 when it never did."""
        return self._places[number][-1] if number in self._places else -1

    def published(self, number: int) -> Published | None:
        """What was published under a number."""
        return self.moves[self.first(number)] if number in self._places else None


@dataclass
class _Notes:
    stale: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    backwards: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)


def check(published: Sequence[Published], asked: Sequence[Asked], answered: Sequence[Answered]) -> Findings:
    """Everything that is wrong. Of a request answered more than once the first answer counts."""
    lines = _lines(published)
    answers = {answer.request_id: answer for answer in reversed(answered)}
    notes, whole = _Notes(), []
    for request in asked:
        answer = answers.get(request.request_id)
        if answer is None:
            notes.unanswered.append(f"{request.request_id} has no answer")
        elif answer.error is not None:
            notes.errors.append(f"{request.request_id}: {answer.error}")
        elif _is_whole(lines[request.adapter_id], request, answer, notes):
            whole.append((request, answer))
    _check_order(lines, whole, notes)
    return Findings(**{kind: tuple(found) for kind, found in vars(notes).items()})


def _lines(published: Iterable[Published]) -> defaultdict[str, _Line]:
    by_adapter: defaultdict[str, list[Published]] = defaultdict(list)
    for move in published:
        by_adapter[move.adapter_id].append(move)
    lines: defaultdict[str, _Line] = defaultdict(lambda: _Line(()))
    lines.update({adapter_id: _Line(moves) for adapter_id, moves in by_adapter.items()})
    return lines


def _is_whole(line: _Line, request: Asked, answer: Answered, notes: _Notes) -> bool:
    """Whether the answer is of one publish, and new enough; what is wrong is noted."""
    what = line.published(answer.number)
    name = f"{request.request_id} of {request.adapter_id}"
    if what is None or (what.digest, what.witness) != (answer.digest, answer.witness):
        notes.mixed.append(f"{name}: {answer.number} is {what}, the answer says {answer.digest[:12]} and computed {answer.witness}")
    elif request.pinned is not None and answer.number != request.pinned:
        notes.mixed.append(f"{name} named {request.pinned} and was answered by {answer.number}")
    elif request.pinned is None and request.min_offset is not None and line.last(answer.number) < line.place_at(request.min_offset):
        notes.stale.append(f"{name} asked for offset {request.min_offset} and was answered by {answer.number}, left before that")
    else:
        return True
    return False


def _check_order(lines: defaultdict[str, _Line], whole: Iterable[tuple[Asked, Answered]], notes: _Notes) -> None:
    """By adapter and worker: what every answer before the asking had at least seen, the answer has seen too."""
    groups: defaultdict[tuple[str, str], list[tuple[Asked, Answered]]] = defaultdict(list)
    for request, answer in whole:
        if request.pinned is None:
            groups[request.adapter_id, answer.worker_id].append((request, answer))
    for (adapter_id, worker_id), pairs in groups.items():
        line, seen, told = lines[adapter_id], -1, sorted(pairs, key=lambda pair: pair[1].at)
        next_told = 0
        for request, answer in sorted(pairs, key=lambda pair: pair[0].at):
            while next_told < len(told) and told[next_told][1].at < request.at:
                seen = max(seen, line.first(told[next_told][1].number))
                next_told += 1
            if line.last(answer.number) < seen:
                notes.backwards.append(f"{request.request_id} of {adapter_id}: {worker_id} went back to {answer.number} from move {seen}")
