"""Whose numbers are not finite: the adapter's, unless the base alone computes such numbers from the same prompt.

A quarantine takes production back on every worker and for good, and anybody may send any prompt."""

from dataclasses import replace

from mint_stream.engine.generation import Generation, GenerationEngine
from mint_stream.errors import AdapterUnloadable, MintError
from mint_stream.messages.inference import Sampling


async def culprit(engine: GenerationEngine, generation: Generation, found: AdapterUnloadable) -> MintError:
    """`found` when the base alone gets through the prompt; else what became of asking it, which says nothing about the adapter."""
    try:
        await engine.run(replace(generation, adapter=None, sampling=Sampling(max_tokens=1)))
    except MintError as error:
        return error
    return found
