"""Learning curves in characters."""

from hypothesis import given
from hypothesis import strategies as st

from mint_stream.cli.curve import curve

LOSSES = st.lists(st.floats(0, 100), min_size=1, max_size=200)


@given(LOSSES, st.integers(1, 80), st.integers(2, 12))
def test_a_chart_has_its_size_whatever_the_losses(losses: list[float], width: int, height: int) -> None:
    lines = curve([(step, loss) for step, loss in enumerate(losses)], width, height)
    assert len(lines) == height + 2
    assert len({len(line) for line in lines[: height + 1]}) == 1
    assert len(lines[0].partition("│")[2]) == min(width, len(losses))


@given(LOSSES)
def test_the_highest_column_is_full_and_every_column_is_seen(losses: list[float]) -> None:
    columns = list(zip(*(line.partition("│")[2] for line in curve(list(enumerate(losses)))[:-2]), strict=True))
    assert all(column[-1] != " " for column in columns)
    if len(set(losses)) > 1 and len(losses) <= 60:
        assert any(set(column) == {"█"} for column in columns)


def test_falling_losses_fall() -> None:
    chart = [line.partition("│")[2] for line in curve([(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)], height=2)]
    assert chart[:2] == ["█▃  ", "██▆▁"]
    assert curve([]) == []
