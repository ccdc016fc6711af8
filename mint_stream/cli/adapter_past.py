"""What `adapters show` prints of an adapter's past: as it was at a moment, and which revision came from which."""

import json
from typing import TYPE_CHECKING

import typer

from mint_stream.cli.moments import moment_ms
from mint_stream.cli.output import plain, print_json, print_table, when
from mint_stream.cli.running import ask

if TYPE_CHECKING:
    from mint_stream.client import AdapterView
    from mint_stream.settings import Settings


def show_at(settings: "Settings", adapter_id: str, at: str, as_json: bool) -> None:
    """Its aliases at the moment `at`; exit code 1 when there was no such adapter then."""
    from mint_stream.client.requests import now_ms

    at_ms = moment_ms(at, now_ms())
    then = ask(settings, lambda client: client.adapter_at(adapter_id, at_ms))
    aliases = {alias: {"number": one.number, "digest": one.digest} for alias, one in sorted(then.aliases.items())} if then else {}
    if as_json:
        canary = plain(then.canary) if then is not None and then.canary is not None else None
        print_json({"adapter_id": adapter_id, "at_ms": at_ms, "existed": then is not None, "aliases": aliases, "canary": canary})
    elif then is None:
        typer.echo(f"there was no adapter {adapter_id} at {when(at_ms)} UTC", err=True)
    else:
        canary = f" · canary: {then.canary.number} at {then.canary.share_basis_points / 100:g} %" if then.canary is not None else ""
        typer.echo(f"{adapter_id} at {when(at_ms)} UTC{canary}")
        print_table(("alias", "number", "digest"), [(alias, one["number"], one["digest"]) for alias, one in aliases.items()])
    if then is None:
        raise typer.Exit(1)


def show_lineage(view: "AdapterView", as_json: bool) -> None:
    """The tree of its revisions with whatever their records say of where they come from."""
    from mint_stream.client.lineage import lineage

    tree = list(lineage(view.revisions))
    pointed: dict[int, list[str]] = {}
    for alias, number in sorted(view.head.aliases.items()):
        pointed.setdefault(number, []).append(alias)
    if as_json:
        return print_json(
            [
                {"number": one.revision.number, "parent": one.revision.parent, "children": one.children, **one.facts(),
                 "aliases": pointed.get(one.revision.number, [])}
                for one in tree
            ]
        )  # fmt: skip
    for one in tree:
        facts = "  ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in one.facts().items())
        aliases = f" ({', '.join(pointed[one.revision.number])})" if one.revision.number in pointed else ""
        parent = f" from {one.revision.parent}" if one.revision.parent is not None else ""
        typer.echo(f"{'  ' * one.depth}{one.revision.number}{aliases}{parent}  {facts}")
    return None
