"""Loads full checkpoints and answers from them, as is done where adapters are not served. transformers alone.

    python -P checkpoint_server.py      a request a line on standard input, an answer a line on standard output, both JSON

Nothing of mint_stream is imported, so that the time this process takes to start is its own.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM

held: dict[str, Any] = {}


def load(checkpoint: str, dtype: str) -> dict[str, Any]:
    """Load a full checkpoint in place of the one before."""
    held.pop("served", None)
    held["served"] = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype), local_files_only=True).eval()
    return {}


def generate(prompt: list[int], new_tokens: int) -> dict[str, Any]:
    """Greedy tokens of the checkpoint that is loaded."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    out = held["served"].generate(input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
    return {"tokens": out[0, len(prompt) :].tolist()}


DOES: dict[str, Callable[..., Any]] = {"load": load, "generate": generate}


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(DOES[asked.pop("do")](**asked)), flush=True)


if __name__ == "__main__":
    main()
