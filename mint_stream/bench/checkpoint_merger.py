"""Merges an adapter into its base and writes a full checkpoint, as is done where adapters are not served. transformers and PEFT alone.

python -P checkpoint_merger.py      a request a line on standard input, an answer a line on standard output, both JSON
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

held: dict[str, Any] = {}


def adapt(base: str, adapter: str, dtype: str) -> None:
    """Load the base with the adapter: what a trainer holds after its last step."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype), local_files_only=True)
    held["adapted"] = peft.PeftModel.from_pretrained(plain, adapter)


def merge(into: str) -> None:
    """Merge what `adapt` loaded and write the full checkpoint."""
    held.pop("adapted").merge_and_unload().save_pretrained(into)


DOES: dict[str, Callable[..., Any]] = {"adapt": adapt, "merge": merge}


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        DOES[asked.pop("do")](**asked)
        print("{}", flush=True)


if __name__ == "__main__":
    main()
