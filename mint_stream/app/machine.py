"""What this machine has: Python, Java, torch and what it can compute with, cores, memory, disk."""

import importlib.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mint_stream.app.findings import Finding, attempt, found
from mint_stream.bus.kafka_parts import find_java
from mint_stream.model.base import native_dtype

GIB = 2**30
MEMORY_BYTES = 4 * GIB
DISK_BYTES = 5 * GIB


def examine_machine(home: Path, needs_broker: bool) -> list[Finding]:
    """Every finding about the machine itself. Java and the resolver matter only where the embedded broker is wanted."""
    broker = [_java(), _package("jgo", "finds the embedded Kafka: pip install 'mint-stream[local]'")] if needs_broker else []
    return [_python(), *broker, _torch(), _device(), _triton(), _dtype(), _cores(), _memory(), _disk(home)]


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    return Finding("python", "ok" if ok else "missing", platform.python_version(), "" if ok else "install Python 3.11 or newer")


def _java() -> Finding:
    return attempt("java", lambda: str(find_java()))


def _package(name: str, remedy: str) -> Finding:
    try:
        return found(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "missing", "not installed", remedy)


def _torch() -> Finding:
    return found("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _device() -> Finding:
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        return found("cuda", names)
    return Finding("cuda", "slow", "no CUDA device", "the CPU path is used; for speed run workers where a GPU is")


def _triton() -> Finding:
    if importlib.util.find_spec("triton") is None:
        return Finding("triton", "slow", "not installed", "only needed on GPUs: pip install triton")
    return found("triton", version("triton"))


def _dtype() -> Finding:
    dtype = str(native_dtype(torch.device("cpu"))).removeprefix("torch.")
    return found("dtype", f"{dtype} on the CPU (bfloat16 only where the processor has matrix units for it)")


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding(
        "cores", "ok" if cores > 1 else "slow", str(cores), "" if cores > 1 else "all roles share one core: answers will be slow"
    )


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _sized("memory", total, MEMORY_BYTES, "`mint-stream up` with the built-in base needs about this much")


def _disk(home: Path) -> Finding:
    place = home.expanduser().absolute()
    while not place.exists():
        place = place.parent
    return _sized("disk", shutil.disk_usage(place).free, DISK_BYTES, f"free space under {place}, or set MINT_HOME elsewhere")


def _sized(name: str, has: int, wants: int, remedy: str) -> Finding:
    detail = f"{has / GIB:.1f} GiB"
    return found(name, detail) if has >= wants else Finding(name, "missing", f"{detail} of {wants / GIB:.0f} GiB", remedy)
