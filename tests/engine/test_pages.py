"""Pages follow what sequences have: promises hold, beginnings are shared with those who would compute the same, and with nobody else."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.engine.pages import NOBODYS, PagePool

PAGES, PAGE = 6, 2
makers = st.sampled_from([None, "digest-1", "digest-2"])
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=7)


@dataclass
class _Sequence:
    maker: str | None
    tokens: list[int]
    length: int
    computed: int
    found: int
    written: dict[int, tuple[str | None, tuple[int, ...]]] = field(default_factory=dict)


moves = st.lists(
    st.one_of(
        st.tuples(st.just("open"), makers, prompts, st.integers(0, 6)),
        st.tuples(st.just("go on"), st.integers(0, 5), st.integers(1, 4)),
        st.tuples(st.just("close"), st.integers(0, 5), st.booleans()),
    ),
    max_size=40,
)


class _World:
    """Sequences over a pool, and beside it what was really written to which page: by whose weights, after which tokens."""

    def __init__(self) -> None:
        self.pool = PagePool(PAGES, PAGE)
        self.open: dict[int, _Sequence] = {}
        self.content: dict[int, tuple[str | None, tuple[int, ...]]] = {}
        self.number = 0

    def move(self, what: str, *rest) -> None:
        if what == "open":
            self._open(*rest)
        elif self.open:
            key = sorted(self.open)[rest[0] % len(self.open)]
            self._go_on(key, rest[1]) if what == "go on" else self._close(key, rest[1])
        self._check()

    def _open(self, maker: str | None, tokens: list[int], more: int) -> None:
        tokens, length = list(tokens), len(tokens) + more
        spare, known = self.pool.spare, self.pool.open(self.number, maker, tokens, length)
        if known is None:
            assert spare < -(-length // PAGE), "it was refused though all of it would have fitted"
            return
        assert known % PAGE == 0 and known < len(tokens)
        for at, page in enumerate(self.pool.table(self.number)):
            assert self.content[page] == (maker, tuple(tokens[: (at + 1) * PAGE])), "what it found is what it would have computed"
        self.open[self.number] = _Sequence(maker, tokens, length, known, known // PAGE)
        self.number += 1

    def _go_on(self, key: int, count: int) -> None:
        one = self.open[key]
        end = min(one.computed + count, one.length)
        one.tokens.extend([0] * (end - len(one.tokens)))
        self.pool.reach(key, end)
        for position in range(one.computed, end):
            self.content[self.pool.table(key)[position // PAGE]] = (one.maker, tuple(one.tokens[: position + 1]))
        one.computed = end
        self.pool.advance(key, end)

    def _close(self, key: int, keep: bool) -> None:
        del self.open[key]
        self.pool.close(key, keep)

    def _check(self) -> None:
        assert self.pool.spare >= 0 and self.pool.used <= PAGES
        for key, one in self.open.items():
            pages = self.pool.table(key)
            assert NOBODYS not in pages and len(set(pages)) == len(pages) and len(pages) >= -(-one.computed // PAGE)
            for at in range(one.computed // PAGE):
                assert self.content[pages[at]] == (one.maker, tuple(one.tokens[: (at + 1) * PAGE])), "nobody wrote over it"


@settings(max_examples=200)
@given(moves)
def test_nobody_writes_over_anothers_page_promises_hold_and_what_is_found_is_right(history: list[tuple]) -> None:
    world = _World()
    for move in history:
        world.move(*move)
    for key in list(world.open):
        while world.open[key].computed < world.open[key].length:
            world.move("go on", sorted(world.open).index(key), 4)
    for key in list(world.open):
        world.move("close", sorted(world.open).index(key), True)
    assert world.pool.used == 0 and world.pool.spare == PAGES, "all pages come back"


def ended(pool: PagePool, sequence: int, maker: str | None, tokens: list[int], keep: bool = True) -> None:
    assert pool.open(sequence, maker, tokens, len(tokens)) is not None
    pool.reach(sequence, len(tokens))
    pool.advance(sequence, len(tokens))
    pool.close(sequence, keep)


def test_sequences_that_run_share_the_pages_they_begin_with() -> None:
    pool = PagePool(PAGES, PAGE)
    assert pool.open(0, "a", [1, 2, 3, 4, 5], 6) == 0
    pool.reach(0, 5)
    pool.advance(0, 5)
    assert pool.open(1, "a", [1, 2, 3, 4, 9, 9], 8) == 4 and pool.table(1) == pool.table(0)[:2]
    assert pool.used == 3 and pool.spare == 1, "two pages are shared, one is the first's own, two are promised to the second"
    pool.close(0, keep=False)
    assert pool.used == 2 and pool.table(1) == [1, 2], "what is shared stays for those who have it"
    assert pool.open(2, "a", [1, 2, 3], 3) == 0, "and is offered to nobody: who made it failed"


def test_of_a_failed_sequence_nothing_is_offered_but_what_it_found() -> None:
    pool = PagePool(PAGES, PAGE)
    ended(pool, 0, "a", [1, 2, 3])
    ended(pool, 1, "a", [1, 2, 3, 4, 5], keep=False)
    assert pool.open(2, "a", [1, 2, 3, 4, 5], 5) == 2


def test_the_beginning_used_last_is_forgotten_last_and_its_end_before_its_start() -> None:
    pool = PagePool(4, PAGE)
    ended(pool, 0, None, [1, 1, 1, 1])
    ended(pool, 1, None, [2, 2, 2, 2])
    assert pool.open(2, None, [3], 5) == 0
    pool.reach(2, 5)
    pool.close(2, keep=False)
    assert pool.open(3, None, [1, 1, 1, 1, 1], 5) == 0
    pool.close(3, keep=True)
    assert pool.open(4, None, [2, 2, 2, 2, 2], 5) == 2


def test_pages_that_are_found_count_as_taken_from_what_is_spare() -> None:
    pool = PagePool(3, PAGE)
    ended(pool, 0, None, [1, 1, 1, 1])
    assert pool.open(1, None, [9], 1) == 0 and pool.spare == 2
    assert pool.open(2, None, [1, 1, 1, 1, 1], 5) is None, "both spare pages hold its beginning, and it needs one more"
    assert pool.open(2, None, [1, 1, 1], 3) == 2


def test_nothing_is_given_beyond_the_promise() -> None:
    pool = PagePool(PAGES, PAGE)
    pool.open(0, None, [1], 3)
    with pytest.raises(ValueError, match="was promised 2 pages more and asks for 3"):
        pool.reach(0, 5)


def test_who_asks_for_no_reuse_finds_nothing() -> None:
    pool = PagePool(PAGES, PAGE)
    ended(pool, 0, None, [1, 2, 3])
    assert pool.open(1, None, [1, 2, 3], 3, reuse=False) == 0
