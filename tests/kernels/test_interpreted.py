"""Triton's interpreter runs the kernels on CPU tensors. It is chosen when triton is first imported, so each module has its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

MODULES = sorted((Path(__file__).parent / "interpreted").glob("*.py"))


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_interpreted_kernels_do_what_their_references_say(module: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(module)]
    child = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr
