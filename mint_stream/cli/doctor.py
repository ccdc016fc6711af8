"""`mint-stream doctor`: what this machine has, and what is missing."""

import asyncio
from dataclasses import asdict

import typer

from mint_stream.cli.options import AsJson, BaseName, Bootstrap, Home, Pool, settings_from
from mint_stream.cli.output import print_json, print_table


def doctor(bootstrap: Bootstrap = None, pool: Pool = None, base: BaseName = None, home: Home = None, as_json: AsJson = False) -> None:
    """Look at this machine, the base, the store and Kafka. Exit code 1 when something is missing."""
    from mint_stream.app.doctor import examine

    findings = asyncio.run(examine(settings_from(bootstrap, pool, base, home)))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(("", "state", "found", "what to do"), [(f.name, f.state, f.detail, f.remedy) for f in findings])
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)
