"""What commands print: tables and lines for people, JSON for machines."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import typer

from mint_stream.messages.record import Record


def print_json(value: object) -> None:
    """One JSON document on one line of standard output."""
    typer.echo(json.dumps(plain(value), ensure_ascii=False))


def plain(value: object) -> Any:
    """Records, and containers of them, as what `json` can write."""
    if isinstance(value, Record):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


def when(at_ms: int) -> str:
    """A moment, in UTC, to the second."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def print_record(record: Record, as_json: bool) -> None:
    """A record as JSON, or as lines `field  value`."""
    if as_json:
        return print_json(record)
    rows = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in plain(record).items()]
    return print_table((), rows)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns; a None is a dash. No columns named: no heading. Piped output is as wide as it needs to be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # a cell is somebody's text, an error with brackets in it, and never markup

    table = Table(*columns, box=None, show_header=bool(columns), pad_edge=False)
    for row in rows:
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in row))
    console = Console(soft_wrap=True) if sys.stdout.isatty() else Console(width=10_000, soft_wrap=True)
    for line in _lines(console, table):
        typer.echo(line.rstrip())


def _lines(console: Any, table: Any) -> list[str]:
    with console.capture() as capture:
        console.print(table)
    return str(capture.get()).splitlines()
