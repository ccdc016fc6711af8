"""native.cpp compiled for this machine, once, where a C++ compiler is installed; a machine without one does without.

The library lies beside its source, as Python's compiled modules do, named by the source, the compiler and the processor.
"""

import ctypes
import functools
import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.cpp")
_WIDE = ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()
OPTIONS = ("-std=c++17", "-O3", "-march=native", *_WIDE, "-fno-math-errno", "-fopenmp", "-fPIC", "-shared", "-w")
COMPILE_SECONDS = 60
KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

Kernel = Callable[..., None]

_POINTER, _INDEX, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_ARGUMENTS = {
    "rms_norm": (_POINTER, _INDEX, _POINTER, _POINTER, _INDEX, _INDEX, _FLOAT),
    "gated": (_POINTER, _INDEX, _POINTER, _INDEX, _INDEX),
    "rotate": (_POINTER, _INDEX, _POINTER, _POINTER, _INDEX, _INDEX, _INDEX),
    "attend": (_POINTER, _FLOAT, _FLOAT, _POINTER, _POINTER, _INDEX, _POINTER),
    "add_lora": (_POINTER, _INDEX, _POINTER, _INDEX, _INDEX, _INDEX, _POINTER, _INDEX, _POINTER, _INDEX, _POINTER),
}


@functools.cache
def kernels() -> dict[tuple[str, torch.dtype], Kernel] | None:
    """By name and kind of number. None where they cannot be had.

    torch is imported by then: the library shares its OpenMP, and with it the threads that wait for work.
    """
    library = _library()
    if library is None:
        return None
    return {(name, kind): _declared(library, f"{name}_{KINDS[kind]}", taken) for name, taken in _ARGUMENTS.items() for kind in KINDS}


def name() -> str | None:
    """Of the library that is in use here, which says all that its bits depend on."""
    library = _library()
    return None if library is None else Path(library._name).name


@functools.cache
def _library() -> ctypes.CDLL | None:
    """None where it cannot be had, which is said once."""
    compiler = shutil.which("g++")
    library = None if compiler is None else loaded(compiler, SOURCE.parent / "__pycache__")
    if library is None:
        log.warning("no g++ here that compiles %s: passes on this CPU take torch's operators, which are slower", SOURCE.name)
    return library


def loaded(compiler: str, folder: Path, source: Path = SOURCE) -> ctypes.CDLL | None:
    """The library of `source`. None, and a line in the log, when it cannot be made or loaded here: no place to write, one that forbids it,
    or a compiler that takes for ever."""
    try:
        found = compiled(compiler, folder, source)
        return None if found is None else ctypes.CDLL(str(found))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s: %s", source.name, error)
        return None


def _declared(library: ctypes.CDLL, name: str, arguments: Sequence[type]) -> Kernel:
    function = getattr(library, name)
    function.argtypes, function.restype = arguments, None
    kernel: Kernel = function
    return kernel


def compiled(compiler: str, folder: Path, source: Path = SOURCE) -> Path | None:
    """The library of `source` for this machine, in `folder` or, where that cannot be written, in one of its own.

    None when the compiler refuses it.
    """
    library = folder / f"native-{_fingerprint(compiler, source)}.so"
    if library.exists():
        return library
    try:
        folder.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder), library.name)
    except OSError:
        library = made = Path(tempfile.mkdtemp(prefix="mint-stream-"), library.name)
    done = subprocess.run([compiler, *OPTIONS, "-o", made, source], capture_output=True, text=True, check=False, timeout=COMPILE_SECONDS)
    if done.returncode:
        log.warning("%s does not compile %s: %s", compiler, source.name, done.stderr.strip()[:500])
    elif made != library:
        made.replace(library)  # whole or not at all, for processes that start together
    if made != library or done.returncode:
        shutil.rmtree(made.parent)
    return None if done.returncode else library


def _fingerprint(compiler: str, source: Path) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = (source.read_text(), *OPTIONS, compiler, version, platform.machine(), *platform.libc_ver(), _processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What it can do, as Linux lists it."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
