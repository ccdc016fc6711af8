"""Options that many commands share, and the settings they make: environment first, then what the command line says."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mint_stream.settings import Settings

NEW_RULE = "The promotion rule of an adapter without revisions; one that has some keeps its rule (`adapters rules` changes it)."

Bootstrap = Annotated[str | None, typer.Option("--bootstrap", help="Kafka servers host:port,...; overrides MINT_KAFKA__BOOTSTRAP_SERVERS.")]
Pool = Annotated[str | None, typer.Option("--pool", help="The deployment of a base model; overrides MINT_POOL.")]
BaseName = Annotated[str | None, typer.Option("--base", help="A built-in name, a directory or a hub id; overrides MINT_BASE.")]
Home = Annotated[Path | None, typer.Option("--home", help="Where local state lives; overrides MINT_HOME.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for machines: one document, or one line an event.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait for an answer.", min=0.1)]


def settings_from(
    bootstrap: str | None = None,
    pool: str | None = None,
    base: str | None = None,
    home: Path | None = None,
) -> Settings:
    """The settings of one command. Raises InvalidSettings."""
    given: dict[str, Any] = {"pool": pool, "base": base, "home": home}
    overrides = {name: value for name, value in given.items() if value is not None}
    if bootstrap is not None:
        overrides["kafka"] = {"bootstrap_servers": bootstrap}
    return Settings.load(**overrides)
