"""`mint-stream`: every command. Helping imports neither torch nor Kafka; each command imports what it needs when it runs."""

import logging
import os
from typing import Annotated

import typer

from mint_stream.cli.adapters import adapters
from mint_stream.cli.base import base
from mint_stream.cli.bench import bench
from mint_stream.cli.bench_loads import loads
from mint_stream.cli.bench_system import system
from mint_stream.cli.demo import demo
from mint_stream.cli.doctor import doctor
from mint_stream.cli.generate import generate
from mint_stream.cli.group import ErrorLine
from mint_stream.cli.jobs import jobs
from mint_stream.cli.kafka import kafka
from mint_stream.cli.requests import cancel, result
from mint_stream.cli.roles import evaluate, register, serve, train, up, work
from mint_stream.cli.topics import app as topics

app = typer.Typer(
    cls=ErrorLine,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, version and serve very many LoRA adapters over a few resident base models, with Kafka as the nervous system.",
)

SYSTEM = "A system"
ROLES = "One role"
USE = "Use"


def _print_version(asked: bool) -> None:
    from importlib.metadata import version

    if asked:
        typer.echo(version("mint-stream"))
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")] = False,
) -> None:
    """What every command takes."""
    if context.invoked_subcommand != "bench":  # a benchmark has the machine to itself, as what it is compared with has
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its idle threads must not spin beside a broker
    # Commands say what went wrong in one line of their own; the Kafka client's log would say it many times before.
    logging.basicConfig(level=logging.DEBUG if debug else logging.CRITICAL)
    logging.getLogger("mint_stream").setLevel(logging.DEBUG if debug else logging.WARNING)


app.command(rich_help_panel=SYSTEM)(up)
app.command(rich_help_panel=SYSTEM)(demo)
app.command(rich_help_panel=SYSTEM)(doctor)
app.command(rich_help_panel=SYSTEM)(kafka)
app.command(rich_help_panel=ROLES)(serve)
app.command(rich_help_panel=ROLES)(train)
app.command(rich_help_panel=ROLES)(work)
app.command(rich_help_panel=ROLES)(register)
app.command(rich_help_panel=ROLES)(evaluate)
app.command(rich_help_panel=USE)(generate)
app.command(rich_help_panel=USE)(result)
app.command(rich_help_panel=USE)(cancel)
app.add_typer(adapters, name="adapters", rich_help_panel=USE)
app.add_typer(jobs, name="jobs", rich_help_panel=USE)
app.add_typer(topics, name="topics", rich_help_panel=SYSTEM)
app.add_typer(base, name="base", rich_help_panel=SYSTEM)
bench.add_typer(loads)
bench.add_typer(system)
app.add_typer(bench, name="bench", rich_help_panel=SYSTEM)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
