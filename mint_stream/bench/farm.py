"""Very many real adapters in a store of this machine, made in minutes: for benchmarks that need as many as nobody trains.

<directory>/store/…        revisions as any store has them
<directory>/index          a line for each: digest, upload
<directory>/plan.json      what they are; another plan is another directory
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mint_stream.adapter import CONFIG_FILE, TENSORS_FILE, AdapterLayer, AdapterWeights
from mint_stream.messages.adapters import Revision
from mint_stream.messages.shared import TargetShape
from mint_stream.messages.training import LoraSettings
from mint_stream.store import Store

RANKS = 8
"""From 1 up, in turn."""
CHUNK = 500


@dataclass(frozen=True)
class Plan:
    """`count` adapters, each with numbers of its own, on these linear layers (path -> in, out); stored as bfloat16, as PEFT would."""

    count: int
    base_digest: str
    linears: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Farm:
    """Adapters by number."""

    uri: str
    base_digest: str
    uploads: Sequence[str]
    """`digest/upload` of each."""

    def revision(self, number: int, name: str) -> Revision:
        """The adapter of this number as revision 1 of the adapter `name`."""
        upload = self.uploads[number]
        return Revision(
            adapter_id=name,
            number=1,
            state="announced",
            digest=upload.partition("/")[0],
            pool="bench",
            uri=f"{self.uri}/adapters/{upload}",
            base_digest=self.base_digest,
            announced_at_ms=0,
        )


def farm(directory: Path, plan: Plan, processes: int = 2) -> Farm:
    """The adapters of `plan`, made unless they are there. What another plan or an interrupted run left is removed first."""
    written = json.dumps(asdict(plan), sort_keys=True)
    told, index = directory / "plan.json", directory / "index"
    if not told.exists() or told.read_text() != written:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        index.write_text("".join(f"{upload}\n" for upload in _made(directory, plan, processes)))
        told.write_text(written)  # last: a directory with it is whole
    return Farm((directory / "store").as_uri(), plan.base_digest, index.read_text().split())


def _made(directory: Path, plan: Plan, processes: int) -> Iterator[str]:
    starts = range(0, plan.count, CHUNK)
    arguments = ((directory, plan, start, min(plan.count, start + CHUNK)) for start in starts)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for uploads in pool.map(_chunk, *zip(*arguments, strict=True)):
            yield from uploads


def _chunk(directory: Path, plan: Plan, start: int, end: int) -> list[str]:
    torch.set_num_threads(1)
    store = Store((directory / "store").as_uri(), {"sync": False})
    return [_published(store, plan, number) for number in range(start, end)]


def _published(store: Store, plan: Plan, number: int) -> str:
    kind = _kind(tuple(sorted(plan.linears.items())), 1 + number % RANKS)
    drawn = np.random.default_rng(number).standard_normal(sum(kind.sizes), dtype=np.float32) * 0.02
    numbers = torch.from_numpy(drawn).bfloat16()
    weights = kind.weights(numbers.float())
    files = {CONFIG_FILE: kind.config, TENSORS_FILE: kind.table + numbers.view(torch.int16).numpy().tobytes()}
    manifest = store.put_revision(files, digest=weights.digest, base_digest=plan.base_digest, targets=kind.targets, parameters=len(drawn))
    return "/".join(manifest.uri.split("/")[-2:])


@dataclass(frozen=True)
class _Kind:
    """What all adapters of one rank have in common: everything but the numbers."""

    shapes: Sequence[tuple[str, tuple[int, int]]]
    """Path and (rows, columns) of A and B of each layer, in the order in which the file has them."""
    parsed: AdapterWeights
    config: bytes
    table: bytes
    targets: Sequence[TargetShape]

    @property
    def sizes(self) -> list[int]:
        """Numbers in each tensor."""
        return [rows * columns for _, (rows, columns) in self.shapes]

    def weights(self, numbers: Tensor) -> AdapterWeights:
        """The adapter of these numbers, which bfloat16 holds, so that its digest is that of its file."""
        pieces = [piece.view(shape) for piece, (_, shape) in zip(numbers.split_with_sizes(self.sizes), self.shapes, strict=True)]
        paths = [path for path, _ in self.shapes[::2]]
        layers = {path: AdapterLayer(a, b, 2.0) for path, a, b in zip(paths, pieces[::2], pieces[1::2], strict=True)}
        return AdapterWeights(layers=layers, config=self.parsed.config)


@lru_cache
def _kind(linears: tuple[tuple[str, tuple[int, int]], ...], rank: int) -> _Kind:
    settings = LoraSettings(rank=rank, alpha=2.0 * rank, target_modules=tuple(path for path, _ in linears))
    fresh = AdapterWeights.fresh(settings, dict(linears), 0)
    files = fresh.to_peft()
    half = {name: tensor.bfloat16() for name, tensor in safetensors.torch.load(files[TENSORS_FILE]).items()}
    whole = safetensors.torch.save(half)
    table = whole[: len(whole) - sum(tensor.nbytes for tensor in half.values())]
    shapes = [(path, shape) for path, (width, height) in linears for shape in ((rank, width), (height, rank))]
    return _Kind(shapes, fresh, files[CONFIG_FILE], table, fresh.targets())
