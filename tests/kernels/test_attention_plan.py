"""The laws of attention's work list."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mint_stream.kernels.attention_plan import LOW, PLANE_TOKENS, TALL, PagedSpan, attention_plan, power

spans = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 3000)), min_size=1, max_size=6)
groups = st.sampled_from([1, 2, 3, 4, 8, 16, 40])
windows = st.sampled_from([None, 1, 63, 64, 1000])


def laid_out(pieces: list[tuple[int, int]]) -> tuple[PagedSpan, ...]:
    found, start = [], 0
    for sequence, (rows, position) in enumerate(pieces):
        found.append(PagedSpan(start, start + rows, position, sequence))
        start += rows + 1
    return tuple(found)


@given(spans, groups, windows)
def test_every_row_meets_each_key_that_it_sees_exactly_once(pieces: list[tuple[int, int]], group: int, window: int | None) -> None:
    plan = attention_plan(laid_out(pieces), group, window)
    met: dict[int, list[tuple[int, int]]] = {}
    for item in plan.tall + plan.low:
        for row in range(item.row, item.row + item.rows):
            met.setdefault(row, []).append((item.begin, item.end))
    for span in laid_out(pieces):
        for row in range(span.start, span.end):
            position = span.position + row - span.start
            parts = sorted(met.pop(row))
            assert all(left[1] == right[0] for left, right in pairwise(parts))
            assert parts[0][0] <= max(0, position - (window or 1 << 30) + 1) and parts[-1][1] > position
    assert not met


@given(spans, groups, windows, st.sampled_from([LOW, TALL]))
def test_items_fit_their_tiles_and_partial_sums_have_places_of_their_own(
    pieces: list[tuple[int, int]], group: int, window: int | None, tall: int
) -> None:
    plan = attention_plan(laid_out(pieces), group, window, tall)
    assert all(item.rows * group <= max(tall, power(group)) for item in plan.tall)
    assert all(item.rows * group <= max(LOW, power(group)) and item.end - item.begin <= PLANE_TOKENS + 16 for item in plan.low)
    places = [(item.plane, item.place + row, item.row + row) for item in plan.low for row in range(item.rows)]
    assert len({(plane, place) for plane, place, _ in places}) == len(places) == sum(planes for _, planes in plan.rows)
    assert all(plan.rows[place][0] == row and plane < plan.rows[place][1] for plane, place, row in places)


@given(spans, spans, groups, windows)
def test_a_spans_cut_does_not_depend_on_its_company(
    before: list[tuple[int, int]], after: list[tuple[int, int]], group: int, window: int | None
) -> None:
    mine = (5, 1200)
    together = attention_plan(laid_out([*before, mine, *after]), group, window)
    alone = attention_plan(laid_out([mine]), group, window)
    cuts = [
        [(item.rows, item.position, item.begin, item.end, item.plane) for item in plan.tall + plan.low if item.rows and item.sequence == at]
        for plan, at in ((together, len(before)), (alone, 0))
    ]
    assert cuts[0] == cuts[1]
