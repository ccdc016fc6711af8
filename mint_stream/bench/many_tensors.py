"""An adapter of tens of thousands of tiny tensors, as experts have them: what loading it costs beside reading its bytes.

From PEFT's own file as it is; and the second time, from the disk tier.
"""

import gc
import hashlib
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from mint_stream.adapter import TENSORS_FILE
from mint_stream.app.measure import spread
from mint_stream.bench.workload import WrongResult, drawn_adapter
from mint_stream.cache import AdapterSource, DiskTier
from mint_stream.messages.adapters import Revision
from mint_stream.store import Store

WIDTH, RANK = 256, 4
"""4 KiB a tensor."""
EXPERTS = 256


def many_tensors(tensors: int, repeats: int) -> dict[str, Any]:
    """Milliseconds to read the file's bytes, to read and hash them once, to load the adapter from the store and from the disk tier.

    Raises WrongResult when the disk tier gives other numbers than the store."""
    linears = {
        f"model.layers.{number // EXPERTS}.mlp.experts.{number % EXPERTS}.down_proj": (WIDTH, WIDTH) for number in range(tensors // 2)
    }
    with tempfile.TemporaryDirectory(prefix="mint-tensors-") as room:
        store, revision = _published(Path(room), linears)
        [path] = Path(room, "store").rglob(TENSORS_FILE)
        with closing(DiskTier(Path(room, "disk"), 2**34)) as disk:
            source = AdapterSource(store, linears, RANK)
            block = source.block(revision)
            disk.write(block)
            found = disk.read(block.digest)
            if found is None or not torch.equal(found.flat, block.flat):
                raise WrongResult("the disk tier gives other numbers than the store")
            sides: dict[str, Callable[[], object]] = {
                "read": path.read_bytes,
                "read_and_hash": lambda: hashlib.sha256(path.read_bytes()).digest(),
                "load_from_store": lambda: source.block(revision),
                "load_from_disk_tier": lambda: disk.read(block.digest),
            }
            times = {name: [_timed(side) for _ in range(repeats + 1)][1:] for name, side in sides.items()}
        size_bytes = path.stat().st_size
    return {"tensors": 2 * len(linears), "bytes": size_bytes, "ms": {name: spread(values) for name, values in times.items()}}


def _published(room: Path, linears: dict[str, tuple[int, int]]) -> tuple[Store, Revision]:
    store = Store((room / "store").as_uri(), {"sync": False})
    weights = drawn_adapter(linears, RANK, seed=0)
    manifest = store.put_revision(
        weights.to_peft(), digest=weights.digest, base_digest="0" * 64, targets=weights.targets(), parameters=weights.parameters
    )
    revision = Revision(
        adapter_id="many", number=1, state="announced", digest=weights.digest, pool="bench", uri=manifest.uri, announced_at_ms=0
    )
    return store, revision


def _timed(side: Callable[[], object]) -> float:
    """What a worker holds for good, its collector does not walk over; the one before goes before the clock starts."""
    gc.collect()
    gc.freeze()
    begun = time.perf_counter()
    result = side()
    ended = time.perf_counter()
    del result
    gc.unfreeze()
    return (ended - begun) * 1e3
