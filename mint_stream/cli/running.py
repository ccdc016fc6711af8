"""Commands are plain functions; what they ask of the client is async. This is the seam."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mint_stream.client import Client
    from mint_stream.settings import Settings

T = TypeVar("T")


def ask(settings: "Settings", question: "Callable[[Client], Awaitable[T]]") -> T:
    """Open a client, put the question, close the client, give the answer."""
    from mint_stream.client import Client

    async def session() -> T:
        async with Client(settings) as client:
            return await question(client)

    return asyncio.run(session())
