"""`mint-stream bench coldload | zipf`: how adapters get from far away to the batch, on engine and tiers without a broker."""

from pathlib import Path
from typing import Annotated

import typer

from mint_stream.cli.options import AsJson, BaseName, Home, settings_from
from mint_stream.cli.output import print_json, print_table

loads = typer.Typer()


@loads.command()
def coldload(
    adapters: Annotated[int, typer.Option(min=1, help="Distinct cold adapters.")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="Requests for one cold adapter.")] = 64,
    rank: Annotated[int, typer.Option(min=1)] = 8,
    latency_ms: Annotated[float, typer.Option(min=0, help="Added to each read of the store.")] = 20.0,
    running: Annotated[int, typer.Option(min=1, help="Rows that run while adapters load.")] = 8,
    steps: Annotated[int, typer.Option(min=4, help="Steps of those rows, at least, on each side.")] = 40,
    tensors: Annotated[int, typer.Option(min=2, help="Of one more adapter that is all tiny tensors.")] = 20_000,
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 5,
    base: BaseName = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Cold loads from a far store: loads for one adapter, overlap against one at a time, the step time of rows that run meanwhile."""
    from mint_stream.bench.coldload import ColdLoad, run
    from mint_stream.model.pull import resolve_base

    settings = settings_from(base=base, home=home)
    found = run(
        resolve_base(settings.base, settings.home), ColdLoad(adapters, requests, rank, latency_ms, running, steps, tensors, repeats)
    )
    if as_json:
        return print_json(found)
    print_table(("ratio", "median", "min", "max"), [(name, *(f"{v:.2f}" for v in of.values())) for name, of in found["spread"].items()])
    print_table(
        ("tiny tensors, ms", "median", "min", "max"),
        [(side, *(f"{v:.0f}" for v in of.values())) for side, of in found["many_tensors"]["ms"].items()],
    )
    counts = [(name, found[name]) for name in ("loads_for_one_adapter", "errors")]
    return print_table(
        (), [*counts, *((name, value) for part in ("workload", "machine", "versions") for name, value in found[part].items())]
    )


@loads.command()
def zipf(
    room: Annotated[Path, typer.Option(help="Where the adapters are made and kept: 5 GB for 100,000.")],
    adapters: Annotated[int, typer.Option(min=1, help="Real adapters on disk, of rank 1 to 8.")] = 100_000,
    names: Annotated[int, typer.Option(min=0, help="Names in the catalog that share them; 0: one each.")] = 0,
    requests: Annotated[int, typer.Option(min=1, help="Measured, through the engine.")] = 2_000,
    warm_up: Annotated[int, typer.Option(min=0, help="Before those, through the tiers alone.")] = 20_000,
    concurrency: Annotated[int, typer.Option(min=2, help="Clients, each with one request at a time.")] = 32,
    latency_ms: Annotated[float, typer.Option(min=0, help="Added to each read of the store.")] = 0.0,
    device_mib: Annotated[int, typer.Option(min=1)] = 16,
    host_mib: Annotated[int, typer.Option(min=1)] = 64,
    disk_mib: Annotated[int, typer.Option(min=1)] = 1024,
    base: BaseName = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """A Zipf(1.0) stream over very many adapters: what each tier finds, and how long requests take, in bounded memory and disk."""
    from mint_stream.bench.zipf import Stream, run
    from mint_stream.model.pull import resolve_base

    settings = settings_from(base=base, home=home)
    device, host, disk = (size * 2**20 for size in (device_mib, host_mib, disk_mib))
    stream = Stream(
        adapters, names, requests, warm_up, concurrency, latency_ms=latency_ms, device_bytes=device, host_bytes=host, disk_bytes=disk
    )
    found = run(resolve_base(settings.base, settings.home), room, stream)
    if as_json:
        return print_json(found)
    tiers = [
        (tier, f"{of['hit_rate']:.1%}", f"{of['share_of_requests']:.1%}", f"{of['used_bytes'] / 2**20:.0f}")
        for tier, of in found["tiers"].items()
    ]
    print_table(("tier", "found of those who looked", "of all requests", "MiB"), tiers)
    latency = [(f"latency {name}, ms", f"{value:.1f}") for name, value in found["latency_ms"].items()]
    facts = [(name, value) for part in ("workload", "machine", "versions") for name, value in found[part].items()]
    return print_table((), [*latency, ("errors", found["errors"]), ("peak memory, MiB", f"{found['peak_memory_mib']:.0f}"), *facts])
