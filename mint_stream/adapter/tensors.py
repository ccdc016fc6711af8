"""A safetensors file as tensors, by a handful of operations however many tensors it has: one table, one copy, one cut.

    8 bytes: n, little endian │ n bytes: JSON {name: {dtype, shape, data_offsets: [begin, end]}} │ the tensors' bytes, without gaps

A worker may read tens of thousands of lines beside a running batch, so a line becomes tuples of numbers and no objects of its own: those
would have Python's collector walk over everything the process holds, again and again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import prod
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
_BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()}
_LENGTH_BYTES = 8

Line = tuple[int, int, str, tuple[int, ...], str]
"""(begin, end, name, shape, dtype) of a tensor."""


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
    lines = sorted(_lines(content[_LENGTH_BYTES:start]))
    _check_places(lines, len(content) - start)
    payload = bytearray(memoryview(content)[start:])
    tensors: dict[str, Tensor] = {}
    finite = True
    for run in _runs(lines):
        numbers, pieces = _cut(run, payload)
        finite &= all_finite(numbers)
        tensors |= pieces
    return TensorFile(tensors, finite)


def write_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The file that safetensors writes of these, to the byte; fp32 on the CPU, contiguous, views of a larger tensor as well.

    Its library turns each tensor into several objects first, which for some hundreds takes longer than all their numbers.
    """
    names = sorted(tensors)
    ends = list(accumulate(tensors[name].nbytes for name in names))
    table = {
        name: {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [end - tensors[name].nbytes, end]}
        for name, end in zip(names, ends, strict=True)
    }
    head = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % _LENGTH_BYTES)
    return b"".join((len(head).to_bytes(_LENGTH_BYTES, "little"), head, *(_numbers(name, tensors[name]) for name in names)))


def _numbers(name: str, tensor: Tensor) -> memoryview:
    if tensor.dtype != torch.float32:
        raise ValueError(f"{name} is {tensor.dtype}: only fp32 is written")
    return tensor.numpy().data.cast("B") if tensor.numel() else memoryview(b"")


def all_finite(tensor: Tensor) -> bool:
    """Whether every number is. What is not shows in the sum; a sum can be too large though no number is, so then all are looked at."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _lines(table: bytes) -> Iterator[Line]:
    try:
        for name, line in json.loads(table).items():
            if name != "__metadata__":
                yield _line(name, line)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidAdapter(f"its table is malformed: {type(error).__name__}: {error}") from error


def _line(name: str, line: Mapping[str, Any]) -> Line:
    (begin, end), shape, dtype = line["data_offsets"], tuple(line["shape"]), line["dtype"]
    if dtype not in _BYTES:
        raise InvalidAdapter(f"{name} has the dtype {str(dtype)[:20]!r}, which is not read here")
    if {type(begin), type(end), *map(type, shape)} != {int} or min(begin, end, *shape) < 0:
        raise InvalidAdapter(f"{name} has a shape or place that is no whole number")
    if end - begin != prod(shape) * _BYTES[dtype]:
        raise InvalidAdapter(f"{name} has {end - begin} bytes for {dtype} {list(shape)}")
    return begin, end, name, shape, dtype


def _check_places(lines: Iterable[Line], size: int) -> None:
    """Each byte belongs to one tensor: none is hidden, and none is read twice."""
    last = 0
    for begin, end, name, _, _ in lines:
        if begin != last:
            raise InvalidAdapter(f"{name} begins at byte {begin}, where the tensor before it ends at {last}")
        last = end
    if last != size:
        raise InvalidAdapter(f"its tensors end at byte {last} of {size}")


def _runs(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Neighbours of one dtype, those without numbers left to themselves: they have no place to be cut from."""
    for _, run in groupby(lines, key=lambda line: (line[4], line[0] == line[1])):
        yield list(run)


def _cut(run: Sequence[Line], payload: bytearray) -> tuple[Tensor, dict[str, Tensor]]:
    """All numbers of a run in one row, and each tensor as a view of its part."""
    dtype, first, last = DTYPES[run[0][4]], run[0][0], run[-1][1]
    if first == last:
        return torch.empty(0), {name: torch.empty(shape, dtype=dtype) for _, _, name, shape, _ in run}
    if first % dtype.itemsize:
        payload, first, last = payload[first:last], 0, last - first  # to where such numbers may stand
    numbers = torch.frombuffer(payload, dtype=dtype, offset=first, count=(last - first) // dtype.itemsize)
    pieces = numbers.split_with_sizes([(end - begin) // dtype.itemsize for begin, end, _, _, _ in run])
    return numbers, {line[2]: piece.view(line[3]) for line, piece in zip(run, pieces, strict=True)}
