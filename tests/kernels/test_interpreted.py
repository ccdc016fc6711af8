"""Triton's interpreter runs the kernels on CPU tensors. It is chosen when triton is first imported, so each module has its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

TRITON_3_6 = "ignore:Conversion of an array with ndim:DeprecationWarning"
"""Its interpreter reads loop bounds as numpy will not allow for long: from numpy 2.4 on it takes triton 3.7 to interpret."""
MODULES = sorted((Path(__file__).parent / "interpreted").glob("*.py"))


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_interpreted_kernels_do_what_their_references_say(module: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", TRITON_3_6, str(module)]
    child = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr
