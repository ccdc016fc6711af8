"""`Progress` as the metadata string of a Kafka offset commit, never longer than brokers accept (4,096 bytes). Pure.

The string is JSON that a person can read in `kafka-consumer-groups` output; offsets count from the committed one. The open offsets are a
bitmap, deflated when that is shorter: 16,384 bits are 2,048 bytes are 2,732 characters at worst."""

import base64
import binascii
import json
import zlib
from typing import Any

from mint_stream.bus.offsets import WINDOW, Progress, fresh

LIMIT_BYTES = 4096
_MAP_BYTES = WINDOW // 8
_VERSION = 1


def encode_metadata(progress: Progress) -> str:
    """ASCII text of at most 4,096 characters. Raises ValueError when the open offsets span more than the window."""
    if progress.open and progress.open[-1] - progress.next_offset >= WINDOW:
        raise ValueError(f"open offsets {progress.next_offset}..{progress.open[-1]} span more than {WINDOW}")
    fields: dict[str, Any] = {"v": _VERSION, "tenure": progress.tenure, "position": progress.position - progress.next_offset}
    fields["high"] = progress.high - progress.next_offset
    fields["until"] = progress.until - progress.next_offset
    fields |= {"takeovers": progress.takeovers} if progress.takeovers else {}
    fields |= {"released": 1} if progress.released else {}
    for name in ("trying", "condemned"):
        offset = getattr(progress, name)
        fields |= {} if offset is None else {name: offset - progress.next_offset}
    fields |= {"open": _pack(progress)} if progress.open else {}
    return json.dumps(fields, separators=(",", ":"))


def decode_metadata(next_offset: int, metadata: str) -> Progress:
    """The progress committed at `next_offset`. Empty metadata (somebody reset the offset) means: everything from there on is to be done.

    Raises ValueError for metadata this version did not write."""
    if not metadata:
        return fresh(next_offset)
    try:
        fields = json.loads(metadata)
        if fields["v"] != _VERSION:
            raise ValueError(f"commit metadata of version {fields['v']}, not {_VERSION}")
        return _progress(next_offset, fields)
    except (KeyError, TypeError, AttributeError, zlib.error, binascii.Error) as error:
        raise ValueError(f"not our commit metadata: {metadata[:80]!r} ({error})") from error


def _progress(base: int, fields: dict[str, Any]) -> Progress:
    def absolute(name: str) -> int | None:
        return base + int(fields[name]) if name in fields else None

    return Progress(
        next_offset=base,
        position=base + int(fields["position"]),
        open=_unpack(base, fields.get("open", "")),
        high=base + int(fields["high"]),
        tenure=int(fields["tenure"]),
        takeovers=int(fields.get("takeovers", 0)),
        until=base + int(fields["until"]),
        released=bool(fields.get("released", 0)),
        trying=absolute("trying"),
        condemned=absolute("condemned"),
    )


def _pack(progress: Progress) -> str:
    bits = bytearray((progress.open[-1] - progress.next_offset) // 8 + 1)
    for offset in progress.open:
        at = offset - progress.next_offset
        bits[at >> 3] |= 1 << (at & 7)
    squeezed = zlib.compress(bits, 9)
    kind, packed = ("z", squeezed) if len(squeezed) < len(bits) else ("r", bytes(bits))
    return kind + base64.urlsafe_b64encode(packed).decode()


def _unpack(base: int, text: str) -> tuple[int, ...]:
    packed = base64.urlsafe_b64decode(text[1:])
    bits = zlib.decompressobj().decompress(packed, _MAP_BYTES) if text[:1] == "z" else packed[:_MAP_BYTES]
    return tuple(base + 8 * byte + bit for byte, value in enumerate(bits) if value for bit in range(8) if value >> bit & 1)
