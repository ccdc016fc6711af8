"""`mint-stream base`: get the built-in base model, see what a base is."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mint_stream.cli.options import AsJson, Home, settings_from
from mint_stream.cli.output import print_json, print_table
from mint_stream.errors import BaseUnusable

base = typer.Typer(no_args_is_help=True, help="Fetch and describe base models.")

Name = Annotated[str | None, typer.Argument(metavar="[BASE]", help="A built-in name, a directory or a hub id; default: MINT_BASE.")]


@base.command()
def pull(name: Name = None, home: Home = None, as_json: AsJson = False) -> None:
    """Fetch, verify and convert a built-in base, once. A directory or hub id is only looked up."""
    from mint_stream.model.pull import BUILTIN, resolve_base
    from mint_stream.model.pull import pull as fetch

    settings = settings_from(base=name, home=home)
    if settings.base in BUILTIN:
        path = fetch(settings.base, settings.home, lambda line: typer.echo(line, err=True))
    else:
        path = resolve_base(settings.base, settings.home)
    if as_json:
        print_json({"base": settings.base, "path": str(path)})
    else:
        typer.echo(str(path))


@base.command()
def show(name: Name = None, home: Home = None, as_json: AsJson = False) -> None:
    """Digest, architecture and sizes of a base that is on this machine."""
    from mint_stream.model.digest import base_digest
    from mint_stream.model.pull import resolve_base

    settings = settings_from(base=name, home=home)
    path = resolve_base(settings.base, settings.home)
    config = _config(path)
    facts = {
        "base": settings.base,
        "pool": settings.pool_name,
        "path": str(path),
        "digest": base_digest(path),
        "architecture": ", ".join(config.get("architectures") or ["?"]),
        "layers": config.get("num_hidden_layers"),
        "hidden": config.get("hidden_size"),
        "context_tokens": config.get("max_position_embeddings"),
        "vocabulary_tokens": config.get("vocab_size"),
        "weights_bytes": sum(file.stat().st_size for file in path.glob("*.safetensors")),
    }
    if as_json:
        print_json(facts)
    else:
        print_table((), list(facts.items()))


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config: dict[str, Any] = dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise BaseUnusable(f"{file} is not a JSON object: {error}; fetch the base again") from error
    return config
