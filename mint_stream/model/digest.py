"""The digest of a base model: weights, config and tokenizer. Two workers with the same digest answer alike. Needs no torch."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from mint_stream.errors import BaseUnusable
from mint_stream.messages.record import canonical_digest, canonical_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
_SETTINGS_FILES = ("config.json", "generation_config.json")
_WITHOUT_MEANING = frozenset({"_name_or_path", "transformers_version", "_attn_implementation_autoset"})


def base_digest(path: Path) -> str:
    """sha256 hex over the files of the model directory. Remembered beside it until a file's size or time changes. Raises BaseUnusable."""
    files = _files(path)
    stamp = canonical_digest([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])
    memory = path.parent / f".{path.name}.digest.json"
    if (known := _remembered(memory, stamp)) is not None:
        return known
    digest = canonical_digest({file.name: _file_digest(file) for file in files})
    _remember(memory, stamp, digest)
    return digest


def _files(path: Path) -> list[Path]:
    weights = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not weights:
        raise BaseUnusable(f"{path} is not a model directory: it needs config.json and *.safetensors weights")
    named = (path / name for name in (*_SETTINGS_FILES, *TOKENIZER_FILES))
    return sorted([*weights, *(file for file in named if file.is_file())])


def _file_digest(file: Path) -> str:
    if file.name in _SETTINGS_FILES:
        return hashlib.sha256(canonical_json(_meaningful(file))).hexdigest()
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _meaningful(file: Path) -> dict[str, object]:
    """Settings without what only says which library wrote them."""
    try:
        settings = json.loads(file.read_bytes())
    except ValueError as error:
        raise BaseUnusable(f"{file} is not JSON: {error}") from error
    return {name: value for name, value in settings.items() if name not in _WITHOUT_MEANING}


def _remembered(memory: Path, stamp: str) -> str | None:
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return None
    return str(known["digest"]) if isinstance(known, dict) and known.get("stamp") == stamp else None


def _remember(memory: Path, stamp: str, digest: str) -> None:
    """Saves the next start some seconds; a directory that cannot be written to only costs them again."""
    fresh = memory.with_name(f"{memory.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        fresh.write_bytes(canonical_json({"stamp": stamp, "digest": digest}))
        fresh.replace(memory)
