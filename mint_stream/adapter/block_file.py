"""A block as one file, in the layout that kernels read: loading it is one read into the memory that it is used from.

magic │ crc32 of the rest │ bytes of the table, of the numbers │ table: {"digest", "dtype", "layers"} as JSON │ the numbers
"""

import json
import struct
import zlib
from collections.abc import Iterator
from hashlib import sha256
from io import SEEK_END, RawIOBase
from typing import Any

import torch
from torch import Tensor

from mint_stream.adapter.block import ALIGNMENT_BYTES, SHARED_INPUTS, AdapterBlock, elements_of
from mint_stream.errors import CorruptObject

MAGIC = b"mintblk1"
LAYOUT = sha256(repr((MAGIC, ALIGNMENT_BYTES, SHARED_INPUTS)).encode()).hexdigest()[:8]
"""Names what decides where a layer's numbers are: files of another layout are other files."""
_HEAD = struct.Struct("<8sIQQ")
_LARGEST_TABLE_BYTES = 2**28


def block_name(digest: str, dtype: torch.dtype) -> str:
    """The one name of a block's file: the same content, dtype and layout have the same bytes."""
    return f"{digest}-{str(dtype).removeprefix('torch.')}-{LAYOUT}"


def block_parts(block: AdapterBlock) -> Iterator[bytes | memoryview]:
    """The bytes of a block's file, piece by piece, the numbers without a copy. `block` is on the CPU."""
    table = json.dumps({"digest": block.digest, "dtype": str(block.flat.dtype).removeprefix("torch."), "layers": block.shapes}).encode()
    numbers = _bytes_of(block.flat)
    yield _HEAD.pack(MAGIC, _checksum(table, numbers), len(table), numbers.nbytes)
    yield table
    yield numbers


def read_block(file: RawIOBase, digest: str, dtype: torch.dtype, pin: bool = False) -> AdapterBlock:
    """The block in `file`, in page-locked memory if `pin`. Raises CorruptObject when it is not whole or not that block."""
    head = file.read(_HEAD.size) or b""
    if len(head) < _HEAD.size or head[: len(MAGIC)] != MAGIC:
        raise CorruptObject("not a block's file")
    _, checksum, table_bytes, number_bytes = _HEAD.unpack(head)
    if _HEAD.size + table_bytes + number_bytes != file.seek(0, SEEK_END):
        raise CorruptObject("a block's file of another length than it says")
    file.seek(_HEAD.size)
    table = file.read(min(table_bytes, _LARGEST_TABLE_BYTES)) or b""
    flat = torch.empty(number_bytes // dtype.itemsize, dtype=dtype, pin_memory=pin)
    numbers = _bytes_of(flat)
    if _filled(file, numbers) != number_bytes or _checksum(table, numbers) != checksum:
        raise CorruptObject("a block's file that is not what was written")
    return _block(json.loads(table), flat, digest)


def _block(table: dict[str, Any], flat: Tensor, digest: str) -> AdapterBlock:
    shapes = {path: (rows, width, height, experts) for path, (rows, width, height, experts) in table["layers"].items()}
    named = table["digest"] == digest and f"torch.{table['dtype']}" == str(flat.dtype)
    if not named or elements_of(shapes, flat.dtype) != flat.numel():
        raise CorruptObject(f"the file of another block than {digest[:12]}")
    return AdapterBlock.over(flat, shapes, digest)


def _bytes_of(flat: Tensor) -> memoryview:
    return flat.view(torch.uint8).numpy().data


def _filled(file: RawIOBase, numbers: memoryview) -> int:
    """Reads until all is there or the file ends; the system reads at most 2 GiB at a time."""
    done = 0
    while done < numbers.nbytes and (count := file.readinto(numbers[done:])):
        done += count
    return done


def _checksum(table: bytes, numbers: memoryview) -> int:
    return zlib.crc32(numbers, zlib.crc32(table))
