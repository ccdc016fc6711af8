"""The laws of the work list: who does which row, how a sum is split, how much is padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.kernels.segments import Bound, Segment, Segments
from mint_stream.kernels.tiles import DTYPES, ROWS, every_tile, rank_bucket, tile
from mint_stream.kernels.worklist import Launch, bucket, cut, plan
from tests.kernels import mixes

long_pieces = st.lists(st.tuples(st.integers(-1, mixes.ADAPTERS - 1), st.integers(0, 400)), min_size=1, max_size=40)
inputs = st.integers(1, 1024).map(lambda units: units * 8)
dtypes = st.sampled_from(DTYPES)
fixed_rows = st.sampled_from((None, *ROWS))


def rows_of(launches: tuple[Launch, ...]) -> list[tuple[int, int]]:
    """Each (row, slot) that some item covers, as often as it is covered."""
    return sorted((row, item.slot) for at in launches for item in at.items for row in range(item.start, item.start + item.rows))


@given(long_pieces, mixes.ranks, inputs, dtypes, fixed_rows)
def test_every_adapted_row_is_in_exactly_one_item_and_no_other_row_is_in_any(
    pieces: list[tuple[int, int]], ranks: list[int], inputs: int, dtype: torch.dtype, fixed_rows: int | None
) -> None:
    segments = mixes.segments_of(pieces)
    launches = plan(segments, ranks, inputs, dtype, fixed_rows)
    expected = [(row, item.slot) for item in segments.items if ranks[item.slot] for row in range(item.start, item.end)]
    assert rows_of(launches) == sorted(expected)
    for launch in launches:
        assert all(item.rows <= launch.tile.rows and (item.rows == 0 or ranks[item.slot] <= launch.tile.rank) for item in launch.items)


@given(long_pieces, mixes.ranks, inputs, dtypes, fixed_rows)
def test_the_planes_of_a_sum_cover_it_and_none_is_empty(
    pieces: list[tuple[int, int]], ranks: list[int], inputs: int, dtype: torch.dtype, fixed_rows: int | None
) -> None:
    for launch in plan(mixes.segments_of(pieces), ranks, inputs, dtype, fixed_rows):
        steps = -(-inputs // launch.tile.inputs)
        assert (launch.planes - 1) * launch.steps < steps <= launch.planes * launch.steps
        assert launch.planes <= launch.tile.max_planes


@given(st.integers(1, 100_000))
def test_at_most_a_quarter_of_a_list_is_padding_and_lists_have_few_lengths(items: int) -> None:
    assert items <= bucket(items) and 4 * (bucket(items) - items) <= bucket(items)
    assert len({bucket(count) for count in range(1, 1025)}) <= 40


@given(long_pieces, long_pieces, mixes.ranks, st.integers(1, 128), inputs, dtypes)
def test_a_batch_invariant_row_has_the_same_tile_and_split_whoever_shares_the_pass(
    before: list[tuple[int, int]], after: list[tuple[int, int]], ranks: list[int], rank: int, inputs: int, dtype: torch.dtype
) -> None:
    mine = len(ranks)
    segments = mixes.segments_of([*before, (mine, 3), *after])
    (alone,) = plan(mixes.segments_of([(mine, 3)]), [*ranks, rank], inputs, dtype, ROWS[0])
    launches = plan(segments, [*ranks, rank], inputs, dtype, ROWS[0])
    (shared,) = (launch for launch in launches if any(item.slot == mine for item in launch.items))
    assert (shared.tile, shared.planes, shared.steps) == (alone.tile, alone.planes, alone.steps)


def test_every_tile_that_a_plan_may_choose_is_known() -> None:
    known = set(every_tile())
    for rank in range(1, 129):
        for rows in (3, 100):
            for dtype in DTYPES:
                for fixed_rows in (None, *ROWS):
                    (launch,) = plan(Segments((Segment(0, rows, 0),), rows), [rank], 4096, dtype, fixed_rows)
                    assert launch.tile in known
    with pytest.raises(ValueError, match="ranks from 1 to 128, not 129"):
        tile(16, 129, torch.float32)
    assert [rank_bucket(rank) for rank in (1, 16, 17, 32, 33, 128)] == [16, 16, 32, 32, 128, 128]


@given(st.integers(0, 200), st.integers(1, 128), inputs, dtypes, st.integers(1, 8))
def test_a_pass_of_which_the_shape_alone_is_known_has_as_many_items_as_its_shape(
    count: int, rank: int, inputs: int, dtype: torch.dtype, slices: int
) -> None:
    items = torch.zeros(count, 4, dtype=torch.int32)
    launches = plan(Segments((), 200, bound=Bound(items, rank)), [0, 0], inputs, dtype, slices=slices)
    if not count:
        assert launches == ()
        return
    (launch,) = launches
    assert len(launch.items) == count and not any(item.rows for item in launch.items) and launch.tile == tile(ROWS[0], rank, dtype)
    assert 1 <= launch.planes <= launch.tile.max_planes and launch.planes * launch.steps * launch.tile.inputs >= inputs


@given(long_pieces, st.sampled_from(ROWS))
def test_items_cover_every_adapted_row_once_whoever_adapts_it(pieces: list[tuple[int, int]], height: int) -> None:
    segments = mixes.segments_of(pieces)
    items = cut(segments, height)
    assert [row for item in items for row in range(item.start, item.start + item.rows)] == [
        row for row, slot in enumerate(segments.slots()) if slot >= 0
    ]
    assert all(0 < item.rows <= height for item in items)
