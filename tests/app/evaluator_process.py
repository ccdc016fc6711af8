"""An evaluate role in a process of its own that ends itself with kill -9, or stops there until it is told to continue, after one effect.

python -m tests.app.evaluator_process EFFECT SIGKILL|SIGSTOP ADAPTER     (settings in the environment; EFFECT "" runs until it is killed)

Only what befalls ADAPTER counts: an evaluator holds the whole fleet's trials, and neighbours left some."""

import asyncio
import os
import signal
import sys

from mint_stream.app.evaluate import EvaluateRole
from mint_stream.app.workplace import Workplace
from mint_stream.client.connect import connection_from
from mint_stream.metrics import Metrics
from mint_stream.settings import Settings
from tests.evaluation_ground import QUICK


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(fatal: str, how: str, adapter: str) -> None:
    settings = Settings.load()
    struck: list[str] = []

    def after(effect: str, adapter_id: str) -> None:
        if adapter_id != adapter:
            return
        say(effect)
        if effect == fatal and not struck:
            struck.append(effect)
            os.kill(os.getpid(), signal.Signals[how])

    with Workplace(settings.home, "evaluate") as workplace:
        role = EvaluateRole(settings, connection_from(settings), Metrics(), workplace, after, QUICK)
        await role.start()
        say("started")
        await role.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
