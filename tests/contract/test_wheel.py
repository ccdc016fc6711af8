"""What pip installs, without the source tree beside it, still knows its topics and its Kafka."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
ASK = """
import pathlib, sys
from mint_stream import contracts
from mint_stream.bus.kafka_parts import read_pins
assert pathlib.Path(contracts.__file__).is_relative_to(sys.argv[1]), contracts.__file__
below = contracts.directory()
print(below.relative_to(sys.argv[1]), len(contracts.load_topics()), len(read_pins()), (below / "schemas/InferenceRequest.json").is_file())
"""


@pytest.mark.timeout(180)
@pytest.mark.long
def test_the_wheel_holds_topics_schemas_and_pins(tmp_path: Path) -> None:
    """Limit 180 s: pip fetches the build backend into a fresh environment."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    ZipFile(wheel).extractall(site)
    code = f"import sys; sys.path.insert(0, sys.argv[1])\n{ASK}"
    answer = subprocess.run([sys.executable, "-c", code, str(site)], check=True, capture_output=True, text=True, cwd=tmp_path)
    files = len(list((ROOT / "topics").glob("*.yaml")))
    assert answer.stdout.split() == ["mint_stream/topics", str(files), "46", "True"]
