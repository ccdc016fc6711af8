"""A chunk that comes after the result is told once, as part of what is missing to the result's text."""

from mint_stream.bus.streams import ChunkStream
from mint_stream.messages.inference import InferenceChunk, InferenceResult


def chunk(sequence: int, text: str) -> InferenceChunk:
    return InferenceChunk(request_id="r", attempt=0, sequence=sequence, text=text)


async def test_a_chunk_after_the_result_is_in_the_remainder_and_not_in_the_queue() -> None:
    stream = ChunkStream("r")
    stream.add(chunk(0, "c"))
    stream.add(chunk(1, "b"))
    stream.finish()
    stream.add(chunk(2, "a"))
    told = [await stream.next() for _ in range(3)]
    assert told == [chunk(0, "c"), chunk(1, "b"), None]
    result = InferenceResult(request_id="r", tenant="t", request_digest="a" * 64, status="ok", text="cba", completed_at_ms=1)
    assert stream.remainder(result) == [chunk(2, "a")]
