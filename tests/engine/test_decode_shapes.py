"""Every decode step that a graph can hold has one, and little of that is for nothing."""

from hypothesis import given
from hypothesis import strategies as st

from mint_stream.engine.decode_shapes import MOST_ROWS, RANKS, Shape, Shapes

steps = st.tuples(st.integers(1, 200), st.integers(0, 200), st.integers(1, 140), st.integers(1, 80))


@given(st.integers(1, 200), st.integers(1, 64), steps)
def test_the_shape_of_a_step_is_captured_holds_it_and_wastes_little(most_rows: int, most_planes: int, step: tuple[int, ...]) -> None:
    shapes = Shapes(most_rows, most_planes)
    rows, items, rank, planes = step[0], min(step[1], step[0]), step[2], step[3]
    found = shapes.holding(rows, items, rank if items else 0, planes)
    if rows > min(most_rows, MOST_ROWS) or planes > most_planes or (items and rank > RANKS[-1]):
        assert found is None
        return
    assert found is not None and found in set(shapes)
    assert found.rows >= rows and found.planes >= planes and (found.rows - rows) * 4 < found.rows
    assert (found.items, found.rank) == (0, 0) if not items else found.rank >= rank and items <= found.items < 2 * items


@given(st.integers(1, 200), st.integers(1, 64))
def test_each_shape_is_captured_once_and_the_largest_first(most_rows: int, most_planes: int) -> None:
    found = list(Shapes(most_rows, most_planes))
    assert len(set(found)) == len(found)
    assert [one.rows for one in found] == sorted((one.rows for one in found), reverse=True)


def test_a_worker_of_32_rows_has_so_many_graphs() -> None:
    assert len(list(Shapes(32, 4))) == 154
    assert Shapes(32, 64).holding(9, 3, 20, 5) == Shape(10, 4, 32, 64)
