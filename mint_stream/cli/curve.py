"""A learning curve in characters: eight heights a line, so that a terminal shows what a picture would."""

from collections.abc import Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"


def curve(points: Sequence[tuple[float, float]], width: int = 60, height: int = 8) -> list[str]:
    """Lines of a chart of (x, y) in ascending x, with the largest and smallest y beside it and the first and last x below it.

    Each column is the mean of the points that fall into it; one without points repeats its neighbour to the left. No points: no lines."""
    if not points:
        return []
    columns = _columns(points, width)
    low, high = min(columns), max(columns)
    eighths = [1 if high == low else 1 + round((value - low) / (high - low) * (8 * height - 1)) for value in columns]
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    margin = max(map(len, labels.values()))
    rows = [
        f"{labels.get(row, ''):>{margin}} │{''.join(_BLOCKS[min(8, max(0, filled - 8 * (height - 1 - row)))] for filled in eighths)}"
        for row in range(height)
    ]
    first, last = f"{points[0][0]:g}", f"{points[-1][0]:g}"
    return [*rows, f"{'':>{margin}} └{'─' * len(columns)}", f"{'':>{margin}}  {first}{last:>{max(0, len(columns) - len(first))}}"]


def _columns(points: Sequence[tuple[float, float]], width: int) -> list[float]:
    start, end = points[0][0], points[-1][0]
    wide = max(1, min(width, len(points)))
    found: list[list[float]] = [[] for _ in range(wide)]
    for x, y in points:
        place = int((x - start) / (end - start) * (wide - 1)) if end > start else 0
        found[place].append(y)
    columns: list[float] = []
    for here in found:
        columns.append(sum(here) / len(here) if here else columns[-1])
    return columns
