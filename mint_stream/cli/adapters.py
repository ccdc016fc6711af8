"""`mint-stream adapters`: what the catalog holds, and commands to the registrar."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from mint_stream.cli.adapter_past import show_at, show_lineage
from mint_stream.cli.options import NEW_RULE, AsJson, Bootstrap, Pool, Timeout, settings_from
from mint_stream.cli.output import plain, print_json, print_record, print_table, when
from mint_stream.cli.rules import rules
from mint_stream.cli.running import ask
from mint_stream.cli.shares import basis_points
from mint_stream.messages.adapters import AdapterEvent, Canary, PromotionRule

if TYPE_CHECKING:
    from mint_stream.client import AdapterView, Client

adapters = typer.Typer(no_args_is_help=True, help="List, show, watch, import, promote, roll back, retire and delete adapters.")

AdapterId = Annotated[str, typer.Argument(metavar="ADAPTER", help="The adapter's name.")]
Number = Annotated[int, typer.Argument(metavar="NUMBER", help="The revision's number.", min=1)]
ANSWER_S = 30.0


@adapters.command("list")
def list_adapters(bootstrap: Bootstrap = None, pool: Pool = None, as_json: AsJson = False) -> None:
    """Every adapter of the catalog: its production revision, how many revisions, its promotion rule."""
    views = ask(settings_from(bootstrap, pool), lambda client: client.adapters())
    if as_json:
        return print_json([view.head for view in views])
    rows = [(view.adapter_id, view.head.pool, view.production, len(view.revisions), view.head.rule) for view in views]
    return print_table(("adapter", "pool", "production", "revisions", "rule"), rows)


@adapters.command()
def show(
    adapter_id: AdapterId,
    at: Annotated[str | None, typer.Option(help="As it was then: 2026-11-25T14:00 (UTC), or so long ago: 90m, 2h, 3d.")] = None,
    lineage: Annotated[bool, typer.Option("--lineage", help="Which revision came from which, by which job and step.")] = False,
    bootstrap: Bootstrap = None,
    pool: Pool = None,
    as_json: AsJson = False,
) -> None:
    """One adapter: its aliases, its rule, and every revision; or as it was, or where its revisions come from."""
    if at is not None and lineage:
        raise typer.BadParameter("--at and --lineage are two questions: ask one at a time")
    if at is not None:
        return show_at(settings_from(bootstrap, pool), adapter_id, at, as_json)
    view = ask(settings_from(bootstrap, pool), lambda client: client.adapter(adapter_id))
    if lineage:
        return show_lineage(view, as_json)
    if as_json:
        return print_json({"head": view.head, "position": view.position, "revisions": view.revisions})
    aliases = ", ".join(f"{alias} = {number}" for alias, number in sorted(view.head.aliases.items())) or "none"
    canary = f" · canary: {held.number} at {held.share_basis_points / 100:g} %" if (held := view.head.canary) else ""
    trial = f" · on trial: {tried.number} ({tried.phase})" if (tried := view.head.trial) else ""
    spread = f" · over {view.head.spread} partitions" if view.head.spread > 1 else ""
    typer.echo(f"{view.adapter_id} · pool {view.head.pool} · rule {view.head.rule} · aliases: {aliases}{canary}{trial}{spread}")
    return _print_revisions(view)


@adapters.command()
def watch(
    adapter_id: Annotated[str | None, typer.Argument(metavar="[ADAPTER]", help="Only this adapter's; none: everybody's.")] = None,
    from_start: Annotated[bool, typer.Option("--from-start", help="Its whole history first, not only what happens from now on.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many events; default: at Ctrl-C.")] = None,
    bootstrap: Bootstrap = None,
    as_json: AsJson = False,
) -> None:
    """Print events as they happen: announced, aliases moved, quarantined, retired, deleted, rejected. One line an event."""
    show = print_json if as_json else _print_event
    ask(settings_from(bootstrap), lambda client: _follow(client, adapter_id, from_start, count, show))


async def _follow(
    client: "Client", adapter_id: str | None, from_start: bool, count: int | None, show: Callable[[AdapterEvent], None]
) -> None:
    async with client.revisions(adapter_id, "earliest" if from_start else "latest") as events:
        typer.echo("watching", err=True)  # from here on nothing is missed
        async for event in events:
            show(event)
            count = None if count is None else count - 1
            if count == 0:
                return


def _print_event(event: AdapterEvent) -> None:
    told = {name: value for name, value in plain(event).items() if name not in ("type", "adapter_id", "at_ms", "command_id")}
    typer.echo(f"{when(event.at_ms)}  {event.adapter_id}  {event.type}  {json.dumps(told, ensure_ascii=False)}")


@adapters.command("import")
def import_adapter(
    adapter_id: AdapterId,
    source: Annotated[str, typer.Argument(metavar="PEFT", help="A directory or uri holding adapter_config.json and its safetensors.")],
    rule: Annotated[PromotionRule | None, typer.Option(help=NEW_RULE)] = None,
    bootstrap: Bootstrap = None,
    pool: Pool = None,
    timeout: Timeout = ANSWER_S,
    as_json: AsJson = False,
) -> None:
    """Publish an adapter trained elsewhere as the next revision: files to the store, then one announce."""
    from mint_stream.app.importing import import_adapter as publish

    settings = settings_from(bootstrap, pool)
    print_record(ask(settings, lambda client: publish(client, settings, adapter_id, source, promotion=rule, timeout_s=timeout)), as_json)


@adapters.command()
def promote(
    adapter_id: AdapterId,
    number: Number,
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "production",
    bootstrap: Bootstrap = None,
    timeout: Timeout = ANSWER_S,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a revision."""
    print_record(ask(settings_from(bootstrap), lambda client: client.promote(adapter_id, number, alias, timeout_s=timeout)), as_json)


@adapters.command()
def rollback(adapter_id: AdapterId, bootstrap: Bootstrap = None, timeout: Timeout = ANSWER_S, as_json: AsJson = False) -> None:
    """Point production back at what it was before its last move, and set the rule to manual."""
    print_record(ask(settings_from(bootstrap), lambda client: client.rollback(adapter_id, timeout_s=timeout)), as_json)


@adapters.command()
def retire(
    adapter_id: AdapterId, number: Number, bootstrap: Bootstrap = None, timeout: Timeout = ANSWER_S, as_json: AsJson = False
) -> None:
    """Stop serving a revision. Its number is never used again."""
    print_record(ask(settings_from(bootstrap), lambda client: client.retire(adapter_id, number, timeout_s=timeout)), as_json)


@adapters.command()
def delete(
    adapter_id: AdapterId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also with a production revision, or claimed by a training job.")] = False,
    bootstrap: Bootstrap = None,
    timeout: Timeout = ANSWER_S,
    as_json: AsJson = False,
) -> None:
    """End an adapter: every record of it leaves the catalog. Its history stays in adapter-events; there is no way back."""
    settings = settings_from(bootstrap)
    view = ask(settings, lambda client: client.adapter(adapter_id))
    if not yes:
        typer.confirm(f"Delete {_described(view)}? There is no way back.", abort=True, err=True)
    deleted = ask(settings, lambda client: client.delete(adapter_id, force=force, expected_position=view.position, timeout_s=timeout))
    print_record(deleted, as_json)


def _described(view: "AdapterView") -> str:
    production = f"production is {view.production}" if view.production is not None else "no production"
    return f"adapter {view.adapter_id} of pool {view.head.pool} with {len(view.revisions)} revisions, {production},"


adapters.command()(rules)


@adapters.command()
def canary(
    adapter_id: AdapterId,
    revision: Annotated[int | None, typer.Option(help="The revision to try.", min=1)] = None,
    share: Annotated[str, typer.Option(help="Of the requests for production, as 5% or 0.25%.")] = "5%",
    off: Annotated[bool, typer.Option("--off", help="Production answers everything again.")] = False,
    bootstrap: Bootstrap = None,
    timeout: Timeout = ANSWER_S,
    as_json: AsJson = False,
) -> None:
    """Answer a share of the requests for production by another revision."""
    if off == (revision is not None):
        raise typer.BadParameter("give either --revision or --off")
    wanted = Canary(number=revision, share_basis_points=basis_points(share, "--share")) if revision is not None else None
    print_record(ask(settings_from(bootstrap), lambda client: client.set_canary(adapter_id, wanted, timeout_s=timeout)), as_json)


@adapters.command()
def spread(
    adapter_id: AdapterId,
    partitions: Annotated[int, typer.Argument(metavar="PARTITIONS", help="1: one worker at a time.", min=1, max=1024)],
    bootstrap: Bootstrap = None,
    timeout: Timeout = ANSWER_S,
    as_json: AsJson = False,
) -> None:
    """Lay a hot adapter's requests over several partitions, so that several workers serve it."""
    print_record(ask(settings_from(bootstrap), lambda client: client.set_spread(adapter_id, partitions, timeout_s=timeout)), as_json)


def _print_revisions(view: "AdapterView") -> None:
    columns = ("number", "state", "rank", "bytes", "parent", "job", "step", "announced", "digest")
    rows = [
        (r.number, r.state, r.rank, r.size_bytes, r.parent, r.job_id, r.step, when(r.announced_at_ms), r.digest[:12])
        for r in view.revisions
    ]
    print_table(columns, rows)
