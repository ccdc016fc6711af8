"""`mint-stream topics`: compare topics/*.yaml with a cluster, create what is missing, generate their documentation."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from mint_stream.cli.options import AsJson, Bootstrap, Pool, settings_from
from mint_stream.cli.output import print_json, print_table

if TYPE_CHECKING:
    from mint_stream.bus.provision import Change

app = typer.Typer(no_args_is_help=True, help="The topics: compare with a cluster, create, document.")


@app.command()
def plan(bootstrap: Bootstrap = None, pool: Pool = None, as_json: AsJson = False) -> None:
    """What `apply` would do. Exit code 1 when there is anything."""
    from mint_stream.app.provisioned import topics
    from mint_stream.bus import provision
    from mint_stream.client.connect import connection_from

    settings = settings_from(bootstrap, pool)
    changes = asyncio.run(provision.plan(connection_from(settings), topics(settings), settings.pool_name))
    _print_changes(changes, as_json, "nothing to do")
    if changes:
        raise typer.Exit(1)


@app.command()
def apply(bootstrap: Bootstrap = None, pool: Pool = None, as_json: AsJson = False) -> None:
    """Create missing topics and set their configuration. Refuses whatever would need a migration."""
    from mint_stream.app.provisioned import topics
    from mint_stream.bus import provision
    from mint_stream.client.connect import connection_from

    settings = settings_from(bootstrap, pool)
    changes = asyncio.run(provision.apply(connection_from(settings), topics(settings), settings.pool_name))
    _print_changes(changes, as_json, "nothing to do")


@app.command()
def docs(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 when a generated file is stale.")] = False,
    as_json: AsJson = False,
) -> None:
    """Generate topics/schemas, topics/asyncapi.json and topics/README.md."""
    from mint_stream.app.topic_docs import outdated, write
    from mint_stream.contracts import directory, load_topics

    stale = (outdated if check else write)(load_topics(), directory())
    if as_json:
        print_json({"stale" if check else "written": stale})
    else:
        print_table((), [("stale" if check else "written", name) for name in stale] or [("all files are up to date",)])
    if check and stale:
        raise typer.Exit(1)


def _print_changes(changes: "list[Change]", as_json: bool, none: str) -> None:
    from dataclasses import asdict

    if as_json:
        return print_json([asdict(change) for change in changes])
    rows = [(change.action, change.topic, change.detail) for change in changes]
    return print_table(("action", "topic", "detail"), rows) if rows else typer.echo(none)
