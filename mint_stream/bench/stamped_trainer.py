"""The train role as it is, which also writes down when it did what: `python -m mint_stream.bench.stamped_trainer FILE`."""

import asyncio
import sys
from pathlib import Path

from mint_stream.app import train
from mint_stream.bench.stamps import stamping
from mint_stream.settings import Settings

if __name__ == "__main__":
    asyncio.run(train.run(Settings.load(), stamping(Path(sys.argv[1]))))
