"""Real compilation without a GPU: a kernel's variant to a cubin of some architecture, and what that cubin takes of the chip."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448}
"""What one CTA may have, by architecture."""
REGISTERS = 65_536
"""Of one processor."""
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Variant:
    """What a launch compiles: pointer types in the order of the arguments, every other argument an i32, and the constants."""

    kernel: Any
    pointers: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    floats: tuple[str, ...] = ()
    sixteens: tuple[str, ...] = ()
    """Integers that a launch finds to be multiples of 16."""

    def source(self) -> ASTSource:
        """As the launcher specialises it: pointers are multiples of 16 bytes, other integers anything."""
        kinds = {**self.pointers, **dict.fromkeys(self.constants, "constexpr"), **dict.fromkeys(self.floats, "fp32")}
        signature = {name: kinds.get(name, "i32") for name in self.kernel.arg_names}
        aligned = {
            (at,): [["tt.divisibility", 16]] for at, name in enumerate(self.kernel.arg_names) if name in (*self.pointers, *self.sixteens)
        }
        return ASTSource(self.kernel, signature, dict(self.constants), aligned)


@dataclass(frozen=True)
class Resources:
    """Of one CTA (shared memory) or thread (registers, stack)."""

    shared_bytes: int
    registers: int
    stack_bytes: int


def compiled(variant: Variant, arch: int) -> Resources:
    """The variant as a cubin for sm_<arch>."""
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    kernel = triton.compile(variant.source(), target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        printed = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{name}:(\d+)", printed)[-1]) for name in ("REG", "STACK"))
    return Resources(kernel.metadata.shared, registers, stack)


def faults(variant: Variant, arch: int, stack_bytes: int = 0) -> list[str]:
    """What keeps the variant from running, or from running well, on sm_<arch>."""
    found = compiled(variant, arch)
    named = f"{variant.kernel.__name__} {dict(variant.constants)} sm_{arch}: "
    limits = {
        f"{found.shared_bytes} bytes of shared memory": found.shared_bytes <= SHARED_BYTES[arch],
        f"{found.registers} registers a thread": found.registers * 32 * variant.warps <= REGISTERS,
        f"{found.stack_bytes} bytes spilled": found.stack_bytes <= stack_bytes,
    }
    return [named + said for said, kept in limits.items() if not kept]
