"""What slots hold is offered to those who would compute the same, and to nobody else."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from mint_stream.engine.prefixes import SlotContents

SLOTS = 3
MAKERS = st.sampled_from([None, "digest-1", "digest-2"])
PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@dataclass(frozen=True)
class _Move:
    maker: str | None
    prompt: list[int]
    computed: int
    ends: int | None
    keep: bool


moves = st.lists(
    st.builds(_Move, MAKERS, PROMPTS, st.integers(0, 8), st.one_of(st.none(), st.integers(0, SLOTS - 1)), st.booleans()), max_size=30
)


@given(moves)
def test_what_is_offered_is_the_most_that_the_same_maker_computed_of_the_same_tokens(moves: list[_Move]) -> None:
    contents, running, held = SlotContents(SLOTS), set[int](), dict[int, tuple[str | None, list[int]]]()
    for move in moves:
        found = contents.longest(move.maker, move.prompt)
        best = max((_alike(move, *kept) for kept in held.values()), default=0)
        assert (found.tokens if found else 0) == best
        assert found is None or _alike(move, *held[found.slot]) == best
        if contents.free:
            slot = contents.take(found.slot if found else None)
            assert slot not in running and not (found and found.slot not in running and slot != found.slot)
            contents.hold(slot, move.maker, move.prompt, 0)
            contents.advance(slot, computed := min(move.computed, len(move.prompt)))
            held[slot] = (move.maker, move.prompt[:computed])
            running.add(slot)
        if move.ends in running:
            contents.release(move.ends, move.keep)
            running.remove(move.ends)
            if not move.keep:
                del held[move.ends]
        assert contents.free == SLOTS - len(running)


def _alike(move: _Move, maker: str | None, tokens: list[int]) -> int:
    if maker != move.maker:
        return 0
    most = min(len(tokens), len(move.prompt) - 1)
    return next((at for at in range(most) if tokens[at] != move.prompt[at]), most)


def test_the_slot_released_last_is_forgotten_last() -> None:
    contents = SlotContents(3)
    for slot in (contents.take(), contents.take(), contents.take()):
        contents.hold(slot, None, [slot, slot], 2)
    for slot in (1, 2, 0):
        contents.release(slot, keep=True)
    assert [contents.take(), contents.take()] == [1, 2]
    assert contents.longest(None, [0, 0, 0]) is not None and contents.longest(None, [1, 1, 1]) is None


def test_a_prompts_last_token_is_always_left_to_compute() -> None:
    contents = SlotContents(1)
    contents.hold(contents.take(), None, [1, 2, 3], 3)
    found = contents.longest(None, [1, 2, 3])
    assert found is not None and found.tokens == 2
    assert contents.longest(None, [1]) is None
