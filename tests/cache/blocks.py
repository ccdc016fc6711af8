"""A dozen small blocks of different sizes, the same in every process."""

from mint_stream.adapter import AdapterBlock
from tests.factories import random_weights

BLOCKS = [AdapterBlock.build(random_weights(rank=1 + seed % 4, seed=seed)) for seed in range(12)]
