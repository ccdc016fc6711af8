"""What every block of measured figures is written with."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def machine_name(found: Mapping[str, Any]) -> str:
    """The machine of a result, in words."""
    return f"{found['cores']} cores of {found['processor']} ({found['units']})"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
