"""A safetensors file as tensors, by a handful of operations however many tensors it has: one table, one copy, one cut.

8 bytes: n, little endian │ n bytes: JSON {name: {dtype, shape, data_offsets: [begin, end]}} │ the tensors' bytes, without gaps
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from mint_stream.errors import InvalidAdapter

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the table: where a tensor's bytes are, and what they are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class TensorFile:
    """Tensors by name, in memory of their own; and whether every number in them is finite."""

    tensors: Mapping[str, Tensor]
    finite: bool


def read_tensors(content: bytes) -> TensorFile:
    """The tensors of a file. Raises InvalidAdapter for bytes that are no safetensors file."""
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    if len(content) < max(start, _LENGTH_BYTES):
        raise InvalidAdapter(f"its table would end at byte {start} of {len(content)}")
    entries = sorted(_entries(content[_LENGTH_BYTES:start]), key=attrgetter("begin", "end"))
    _check_places(entries, len(content) - start)
    payload = bytearray(memoryview(content)[start:])
    tensors: dict[str, Tensor] = {}
    finite = True
    for run in _runs(entries):
        numbers, pieces = _cut(run, payload)
        finite &= all_finite(numbers)
        tensors |= pieces
    return TensorFile(tensors, finite)


def all_finite(tensor: Tensor) -> bool:
    """Whether every number is. What is not shows in the sum; a sum can be too large though no number is, so then all are looked at."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _entries(table: bytes) -> Iterator[_Entry]:
    try:
        for name, line in json.loads(table).items():
            if name != "__metadata__":
                yield _entry(name, line)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidAdapter(f"its table is malformed: {type(error).__name__}: {error}") from error


def _entry(name: str, line: Mapping[str, Any]) -> _Entry:
    (begin, end), dtype, shape = line["data_offsets"], line["dtype"], tuple(line["shape"])
    if dtype not in DTYPES:
        raise InvalidAdapter(f"{name} has the dtype {str(dtype)[:20]!r}, which is not read here")
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise InvalidAdapter(f"{name} has a shape or place that is no whole number")
    if end - begin != prod(shape) * DTYPES[dtype].itemsize:
        raise InvalidAdapter(f"{name} has {end - begin} bytes for {dtype} {list(shape)}")
    return _Entry(name, dtype, shape, begin, end)


def _check_places(entries: Iterable[_Entry], size: int) -> None:
    """Each byte belongs to one tensor: none is hidden, and none is read twice."""
    end = 0
    for entry in entries:
        if entry.begin != end:
            raise InvalidAdapter(f"{entry.name} begins at byte {entry.begin}, where the tensor before it ends at {end}")
        end = entry.end
    if end != size:
        raise InvalidAdapter(f"its tensors end at byte {end} of {size}")


def _runs(entries: Iterable[_Entry]) -> Iterator[list[_Entry]]:
    """Neighbours of one dtype, those without numbers left to themselves: they have no place to be cut from."""
    for _, run in groupby(entries, key=lambda entry: (entry.dtype, entry.begin == entry.end)):
        yield list(run)


def _cut(run: list[_Entry], payload: bytearray) -> tuple[Tensor, dict[str, Tensor]]:
    """All numbers of a run in one row, and each tensor as a view of its part."""
    dtype, begin, end = DTYPES[run[0].dtype], run[0].begin, run[-1].end
    if begin == end:
        return torch.empty(0), {entry.name: torch.empty(entry.shape, dtype=dtype) for entry in run}
    if begin % dtype.itemsize:
        payload, begin, end = payload[begin:end], 0, end - begin  # to where such numbers may stand
    numbers = torch.frombuffer(payload, dtype=dtype, offset=begin, count=(end - begin) // dtype.itemsize)
    pieces = numbers.split_with_sizes([(entry.end - entry.begin) // dtype.itemsize for entry in run])
    return numbers, {entry.name: piece.view(entry.shape) for entry, piece in zip(run, pieces, strict=True)}
