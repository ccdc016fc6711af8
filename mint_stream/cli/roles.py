"""`mint-stream serve|train|register|evaluate`: one role in this process. `mint-stream up`: all of them, supervised."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from mint_stream.cli.options import AsJson, BaseName, Bootstrap, Home, Pool, settings_from
from mint_stream.cli.output import print_json

if TYPE_CHECKING:
    from mint_stream.app.local_system import RoleName
    from mint_stream.app.supervisor import ChildChange

Count = Annotated[int, typer.Option(min=0, help="How many processes of the role.")]


def serve(bootstrap: Bootstrap = None, pool: Pool = None, base: BaseName = None, home: Home = None) -> None:
    """Answer inference requests: one resident base, many adapters."""
    from mint_stream.app.serve import run

    asyncio.run(run(settings_from(bootstrap, pool, base, home)))


def train(bootstrap: Bootstrap = None, pool: Pool = None, base: BaseName = None, home: Home = None) -> None:
    """Run training jobs and publish what they make."""
    from mint_stream.app.train import run

    asyncio.run(run(settings_from(bootstrap, pool, base, home)))


def work(bootstrap: Bootstrap = None, pool: Pool = None, base: BaseName = None, home: Home = None) -> None:
    """Serve and train on one resident base: training takes the gaps (MINT_TRAINING__BUSY_SHARE bounds what it costs)."""
    from mint_stream.app.work import run

    asyncio.run(run(settings_from(bootstrap, pool, base, home)))


def register(bootstrap: Bootstrap = None, home: Home = None) -> None:
    """Write the catalog: carry out commands to adapters, one owner a partition."""
    from mint_stream.app.register import run

    asyncio.run(run(settings_from(bootstrap, home=home)))


def evaluate(bootstrap: Bootstrap = None, pool: Pool = None, home: Home = None) -> None:
    """Judge candidates of adapters under the rule `gated`: a gate, a canary, production or not."""
    from mint_stream.app.evaluate import run

    asyncio.run(run(settings_from(bootstrap, pool, home=home)))


def up(
    registrars: Count = 1,
    servers: Count = 1,
    trainers: Count = 1,
    evaluators: Count = 1,
    one_base: Annotated[
        bool, typer.Option("--one-base", help="Every server trains as well, on the base it serves; no trainers beside.")
    ] = False,
    logs: Annotated[bool, typer.Option("--logs", help="Show what every process says, each line with its name.")] = False,
    grace: Annotated[float, typer.Option(min=0.0, help="Seconds a role may drain after Ctrl-C.")] = 30.0,
    bootstrap: Bootstrap = None,
    pool: Pool = None,
    base: BaseName = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Everything on this machine: an embedded Kafka (unless --bootstrap), the topics, and a supervised process a role.

    A process that crashes is started again; Ctrl-C drains. Exit code 1 when one had to be given up."""
    from mint_stream.app.local_system import LocalSystem
    from mint_stream.app.up import run

    settings = settings_from(bootstrap, pool, base, home)
    echo = (lambda name, line: typer.echo(f"{name:>10} | {line}", err=True)) if logs else None
    workers: dict[RoleName, int] = {"work": servers} if one_base else {"serve": servers, "train": trainers}
    counts: dict[RoleName, int] = {"register": registrars, **workers, "evaluate": evaluators}
    system = LocalSystem(settings, counts, _print_change_as_json if as_json else _print_change, echo)
    if not asyncio.run(run(system, grace)):
        raise typer.Exit(1)


def _print_change(change: "ChildChange") -> None:
    typer.echo(f"{change.name:>10}  {change.sentence}")


def _print_change_as_json(change: "ChildChange") -> None:
    from dataclasses import asdict

    print_json(asdict(change))
