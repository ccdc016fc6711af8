"""A worker process for the kill tests: answers each record on a results topic, closes it, and is killed by a record that says `poison`.

Usage: worker.py BOOTSTRAP TOPIC RESULTS INSTANCE [takeovers] [close-every]"""

import asyncio
import os
import signal
import sys

from mint_stream.bus.connection import Connection
from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Delivery, Intake, IntakeLimits
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.bus.seat import Seat


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def work(delivery: Delivery, producer: Producer, results: str) -> None:
    say(f"got {delivery.offset}")
    if delivery.value == b"poison":
        os.kill(os.getpid(), signal.SIGKILL)
    if delivery.value == b"hang":
        return
    answer = Outgoing(results, delivery.key, f"{delivery.partition}/{delivery.offset}".encode())
    await producer.publish_raw(answer)
    await delivery.close()


async def main(bootstrap: str, topic: str, results: str, instance: str, takeovers: str = "2") -> None:
    connection = Connection(bootstrap)
    producer = Producer(connection, "worker")
    await producer.start()
    limits = IntakeLimits(takeovers_before_suspect=int(takeovers), commit_interval_s=0.05, session_timeout_s=6.0)
    async with Intake(connection, [topic], topic, DeadLetters(producer), limits, Seat(instance)) as intake:
        say("ready")
        tasks = [asyncio.create_task(work(delivery, producer, results)) async for delivery in intake]
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
