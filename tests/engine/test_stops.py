"""Text as it arrives: whole characters only, and nothing of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from mint_stream.engine.null import bytes_text
from mint_stream.engine.stops import Detokenizer, StopScanner, TextStream

alphabet = st.text("abcé日🙂", max_size=30)
stops = st.lists(st.text("abcé", min_size=1, max_size=4), max_size=3)


@given(alphabet)
def test_pieces_are_whole_characters_and_join_to_the_text(text: str) -> None:
    detokenizer = Detokenizer(bytes_text)
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join([*pieces, detokenizer.finish()]) == text
    assert all(len(piece) <= 1 for piece in pieces)


@given(st.lists(st.integers(0, 255), max_size=30))
def test_any_bytes_join_to_what_decoding_them_at_once_gives(tokens: list[int]) -> None:
    detokenizer = Detokenizer(bytes_text)
    pieces = [detokenizer.push(token) for token in tokens]
    assert "".join([*pieces, detokenizer.finish()]) == bytes_text(tokens)


@given(alphabet, stops, st.integers(1, 5))
def test_the_text_shown_is_the_text_before_the_first_stop_string(text: str, stops: list[str], size: int) -> None:
    scanner = StopScanner(stops)
    shown = ""
    for at in range(0, len(text), size):
        shown += scanner.push(text[at : at + size])
        assert text.startswith(shown) and not any(stop in shown for stop in stops)
        if scanner.stopped:
            break
    ended = scanner.stopped
    shown += scanner.finish()
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    assert ended == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert any(text.startswith(shown + stop) for stop in stops) and not any(stop in shown for stop in stops)


@given(alphabet, stops)
def test_an_end_that_begins_a_stop_string_is_not_shown_yet(text: str, stops: list[str]) -> None:
    stream = TextStream(bytes_text, stops)
    for at, character in enumerate(text):
        for byte in character.encode():
            stream.push(byte)
        if stream.stopped:
            break
        seen = text[: at + 1]
        maybe = [size for stop in stops for size in range(1, len(stop)) if seen.endswith(stop[:size])]
        assert len(stream.text) == len(seen) - max(maybe, default=0)


def test_a_beginning_that_never_becomes_a_stop_string_is_shown_at_the_end() -> None:
    stream = TextStream(bytes_text, ["abc"])
    assert [stream.push(byte) for byte in b"xab"] == ["x", "", ""]
    assert stream.finish() == "ab" and stream.text == "xab" and not stream.stopped
