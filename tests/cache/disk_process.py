"""A worker's disk tier in a process of its own, to be killed. Run by test_disk.

python -m tests.cache.disk_process PATH BUDGET SEED    writes and reads adapters in an order of its own, until it is killed; says `ok` for
each block that it read whole, and ends with an error as soon as one is not what was written."""

import random
import sys
from pathlib import Path

import torch

from mint_stream.cache import DiskTier
from tests.cache.blocks import BLOCKS


def main(path: str, budget: str, seed: str) -> None:
    tier, draw = DiskTier(Path(path), int(budget)), random.Random(int(seed))
    while True:
        block = draw.choice(BLOCKS)
        found = tier.read(block.digest)
        if found is None:
            tier.write(block)
            continue
        if not torch.equal(found.flat, block.flat):
            sys.exit("other numbers than were written")
        sys.stdout.write("ok\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
