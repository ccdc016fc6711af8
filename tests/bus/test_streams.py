"""Chunks put in order."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.bus.streams import ChunkStream, StreamRestart
from mint_stream.messages.inference import InferenceChunk, InferenceResult


def chunk(attempt: int, sequence: int, text: str) -> InferenceChunk:
    return InferenceChunk(request_id="r", attempt=attempt, sequence=sequence, text=text)


def result(attempt: int, text: str) -> InferenceResult:
    return InferenceResult(request_id="r", tenant="t", request_digest="0" * 64, status="ok", text=text, attempt=attempt, completed_at_ms=0)


def told(stream: ChunkStream, answer: InferenceResult) -> str:
    """The text as a reader of the stream has it in the end."""
    text = ""
    for piece in arrived(stream) + stream.remainder(answer):
        text = "" if isinstance(piece, StreamRestart) else text + piece.text
    return text


def arrived(stream: ChunkStream) -> list:
    stream.finish()

    async def drain() -> list:
        pieces = []
        while (piece := await stream.next()) is not None:
            pieces.append(piece)
        return pieces

    return asyncio.run(drain())


words = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=6)


@settings(deadline=None)
@given(words, words, st.randoms(use_true_random=False))
def test_whatever_arrives_in_whatever_order_the_reader_ends_with_the_results_text(old, new, random):
    chunks = [chunk(1, number, text) for number, text in enumerate(old)] + [chunk(2, number, text) for number, text in enumerate(new)]
    arriving = random.choices(chunks, k=random.randrange(2 * len(chunks) + 1))
    stream = ChunkStream("r")
    for one in arriving:
        stream.add(one)
    assert told(stream, result(2, "".join(new))) == "".join(new)


def test_a_higher_attempt_says_that_the_text_begins_anew():
    stream = ChunkStream("r")
    for one in (chunk(1, 0, "He"), chunk(1, 1, "llo"), chunk(2, 0, "Good"), chunk(1, 2, "!"), chunk(2, 1, "bye")):
        stream.add(one)
    assert arrived(stream) == [chunk(1, 0, "He"), chunk(1, 1, "llo"), StreamRestart(2), chunk(2, 0, "Good"), chunk(2, 1, "bye")]


def test_a_gap_waits_and_a_repetition_is_dropped():
    stream = ChunkStream("r")
    for one in (chunk(1, 1, "b"), chunk(1, 0, "a"), chunk(1, 1, "b"), chunk(1, 3, "d")):
        stream.add(one)
    assert arrived(stream) == [chunk(1, 0, "a"), chunk(1, 1, "b")]
    assert stream.remainder(result(1, "abcd")) == [chunk(1, 2, "cd")]


def test_an_error_result_adds_nothing():
    failed = InferenceResult.model_validate(
        {
            "request_id": "r",
            "tenant": "t",
            "request_digest": "0" * 64,
            "status": "error",
            "error": {"code": "c", "message": "m"},
            "completed_at_ms": 0,
        }
    )
    assert ChunkStream("r").remainder(failed) == []
