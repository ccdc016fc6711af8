"""What a catalog of very many adapters costs: replay, restart, resolve under updates, memory, and the registrar that writes it.

A real broker holds the log, two records an adapter, and every side runs in a process of its own by the product's own path.
"""

import asyncio
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from mint_stream import contracts
from mint_stream.app.measure import machine, spread, versions
from mint_stream.bench.catalog_log import POOL, BulkWriter, CatalogLog, manifest_of, name_of, records_of
from mint_stream.bench.catalog_sides import Resolved, registered, replayed, resolved, restarted
from mint_stream.bus.connection import Connection
from mint_stream.bus.local_kafka import LocalKafka
from mint_stream.client.requests import new_id, now_ms
from mint_stream.messages.adapters import Announce

T = TypeVar("T")

SIZES = (1_000, 10_000, 100_000, 1_000_000)
HEAP_MIB = 768


@dataclass(frozen=True)
class Load:
    """How much of everything."""

    adapters: int
    repeats: int = 5
    delta_records: int = 2_000
    """Written between two starts."""
    updates_per_s: int = 500
    """Announces a second, each a revision and a head, while names are resolved."""
    resolves: int = 20_000
    commands: int = 5_000
    """Announces that the registrar finds in its topic, a round."""


def run(load: Load, directory: Path | None = None) -> dict[str, Any]:
    """Measure. In `directory` the log is kept for the next time. Raises WrongResult when anything measured was not right."""
    place: AbstractContextManager[Any] = tempfile.TemporaryDirectory() if directory is None else nullcontext(directory)
    with place as given:
        home = Path(given) / str(load.adapters)
        home.mkdir(parents=True, exist_ok=True)
        _drop_copies(home)  # of a run that was killed
        with LocalKafka(home / "kafka", heap_mib=HEAP_MIB) as broker:
            try:
                return _Bench(load, Connection(broker.bootstrap_servers), home).run()
            finally:
                _drop_copies(home)


def _drop_copies(home: Path) -> None:
    """The log is kept for the next run; each run measures with copies of its own."""
    for copy in home.glob("copy-*"):
        shutil.rmtree(copy)


def curve(sizes: tuple[int, ...] = SIZES, repeats: int = 5, directory: Path | None = None) -> dict[str, Any]:
    """The same for each size."""
    found = [run(Load(adapters, repeats), directory) for adapters in sizes]
    return {"sizes": [{key: value for key, value in one.items() if key not in ("machine", "versions")} for one in found]} | {
        key: found[-1][key] for key in ("machine", "versions")
    }


class _Bench:
    def __init__(self, load: Load, connection: Connection, home: Path) -> None:
        self._load = load
        self._connection = connection
        self._home = home
        self._numbers = 1

    def run(self) -> dict[str, Any]:
        begun = time.perf_counter()
        self._log = asyncio.run(CatalogLog.ready(self._connection, self._load.adapters, self._home))
        filled_s = time.perf_counter() - begun
        replays = [self._apart(replayed, self._connection, self._copy(n), self._load.adapters) for n in range(self._load.repeats)]
        restarts = [self._restart() for _ in range(self._load.repeats)]
        names = [self._resolve() for _ in range(self._load.repeats)]
        commands = [self._register() for _ in range(self._load.repeats)]
        values = {
            "replay_records_per_s": [one.records / one.seconds for one in replays],
            "warm_restart_s": restarts,
            "resolve_p50_us": [one.p50_us for one in names],
            "resolve_p99_us": [one.p99_us for one in names],
            "extra_private_bytes": [float(one.extra_private_bytes) for one in replays],
            "registrar_commands_per_s": commands,
        }
        spreads = {name: spread(measured) for name, measured in values.items()}
        medians = {name: one["median"] for name, one in spreads.items()}
        return {
            "adapters": self._load.adapters,
            "records": replays[0].records,
            **{name: medians[name] for name in ("replay_records_per_s", "warm_restart_s")},
            "resolve_us": {"p50": medians["resolve_p50_us"], "p99": medians["resolve_p99_us"]},
            "extra_private_bytes": int(medians["extra_private_bytes"]),
            "registrar_commands_per_s": medians["registrar_commands_per_s"],
            "updates_applied_per_s": min(one.updates_per_s for one in names),
            "fill_s": filled_s,
            "n": self._load.repeats,
            "spread": spreads,
            "workload": asdict(self._load),
            "machine": machine(),
            "versions": versions("aiokafka", "lmdb", "pydantic", "mint-stream"),
        }

    def _copy(self, number: int) -> Path:
        return self._home / f"copy-{time.time_ns()}-{number}"

    def _apart(self, side: Callable[..., T], *arguments: Any) -> T:
        """In a process that ends with it."""
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(side, *arguments).result()

    def _restart(self) -> float:
        """From the copy of the first replay on, with the delta that was written since."""
        self._write(self._load.delta_records // 2)
        return self._apart(restarted, self._connection, self._last_copy(), self._load.adapters)

    def _resolve(self) -> Resolved:
        load = self._load
        return self._apart(resolved, self._connection, self._last_copy(), load.adapters, load.resolves, load.updates_per_s)

    def _register(self) -> float:
        asyncio.run(self._command(self._load.commands))
        return self._apart(registered, self._connection, self._last_copy(), self._load.commands)

    def _last_copy(self) -> Path:
        return min(self._home.glob("copy-*"))

    def _write(self, adapters: int) -> None:
        """Another revision of so many."""
        self._numbers += 1
        asyncio.run(self._announced(adapters, self._numbers))

    async def _announced(self, adapters: int, number: int) -> None:
        async with BulkWriter(self._connection) as writer:
            for index in range(min(adapters, self._load.adapters)):
                adapter_id = name_of(index)
                for key, value in records_of(adapter_id, number):
                    await writer.write(contracts.ADAPTER_REVISIONS.name(), self._log.home(adapter_id), key, value)

    async def _command(self, count: int) -> None:
        """Announces of adapters of their own, for the others' digests follow from their numbers."""
        async with BulkWriter(self._connection) as writer:
            for n in range(count):
                name = f"commanded.adapter-{n % self._load.adapters:07d}"
                stamp = {"command_id": new_id(), "adapter_id": name, "issued_at_ms": now_ms()}
                announce = Announce(**stamp, pool=POOL, manifest=manifest_of(name, n))
                await writer.write(contracts.ADAPTER_COMMANDS.name(), self._log.home(name), name.encode(), announce.encode())
