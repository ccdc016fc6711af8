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


WHOLE = {
    "training": ("model/test_training_passes.py", "(pefts and (llama or gemma2 or mistral or qwen3_moe or deepseek_v3)) or same_bits"),
    "engine": ("engine/test_paged_parity.py", "logits and gpt_oss"),
}
"""Tests of whole models that hold for the Triton kernels too: where triton interprets, the dispatch chooses them by itself."""


def run_interpreted(*arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", TRITON_3_6, *arguments]
    child = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_interpreted_kernels_do_what_their_references_say(module: Path) -> None:
    run_interpreted(str(module))


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", WHOLE)
def test_whole_models_through_the_interpreted_kernels_are_still_right(name: str) -> None:
    module, chosen = WHOLE[name]
    run_interpreted(str(Path(__file__).parents[1] / module), "-k", chosen)
