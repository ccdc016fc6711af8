"""The numeric fingerprint: what has to be equal for the same job to end in the same bits."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

import mint_stream.kernels
from mint_stream.kernels import native_library
from mint_stream.messages.record import canonical_digest
from mint_stream.model.base import ResidentBase


def numeric_fingerprint(base: ResidentBase) -> str:
    """sha256 in hex over device, dtype, threads, library versions, kernels and tokenizer of `base` in this process."""
    return canonical_digest(numeric_facts(base))


def code_version() -> str:
    """The package's version, and the first half of a sha256 over the modules that training runs through."""
    package = Path(mint_stream.kernels.__file__).parents[1]
    sources = "".join(_sources(package / room) for room in ("adapter", "kernels", "model", "trainer"))
    return f"{importlib.metadata.version('mint-stream')}+{hashlib.sha256(sources.encode()).hexdigest()[:32]}"


def numeric_facts(base: ResidentBase) -> dict[str, object]:
    """What the fingerprint is made of, by name, to say what changed."""
    return {
        "base": base.digest,
        "device": _device(torch.device(base.device)),
        "dtype": str(base.dtype),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "blas": hashlib.sha256(torch.__config__.show().encode()).hexdigest(),
        "transformers": importlib.metadata.version("transformers"),
        "triton": _version("triton"),
        "torchao": _version("torchao"),
        "kernels": _sources(Path(mint_stream.kernels.__file__).parent),
        "native": native_library.name() or "none",
        "tokenizer": _tokenizer(base.tokenizer),
    }


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} cuda {torch.version.cuda}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sources(folder: Path) -> str:
    """Kernel tables are code, so the code's bytes stand for them."""
    digest = hashlib.sha256()
    for file in sorted(file for kind in ("*.py", "*.cpp") for file in folder.rglob(kind)):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _tokenizer(tokenizer: Any) -> str:
    described = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return hashlib.sha256(described.encode()).hexdigest()
