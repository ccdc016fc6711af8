"""Datasets as editors, spreadsheets and operating systems write them: what a line is, and what its text is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.errors import InvalidDataset
from mint_stream.trainer.dataset import Dataset, read_dataset
from tests.factories import byte_tokenizer

END = "<|im_end|>"
TOKENIZER = byte_tokenizer()


def read(text: bytes, limit: int = 10_000) -> Dataset:
    return read_dataset(text, TOKENIZER, limit)


def line(prompt: str = "a", completion: str = "b") -> bytes:
    return json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False).encode()


def texts(dataset: Dataset) -> list[str]:
    return [TOKENIZER.decode(example.tokens).removesuffix(END) for example in dataset.examples]


def test_lines_may_end_as_windows_ends_them():
    unix = read(b"\n".join([line("1"), line("2")]))
    windows = read(b"\r\n".join([line("1"), line("2")]) + b"\r\n")
    assert windows.examples == unix.examples
    assert windows.digest != unix.digest


def test_a_carriage_return_alone_ends_no_line():
    with pytest.raises(InvalidDataset, match=r"^line 1: not JSON"):
        read(line("1") + b"\r" + line("2"))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_what_only_unicode_calls_a_line_break_is_text_where_json_lets_it_be(separator: str):
    written = line(f"a{separator}b") if separator > "\x1f" else json.dumps({"prompt": f"a{separator}b", "completion": "b"}).encode()
    assert texts(read(written)) == [f"a{separator}bb"]


def test_a_line_break_inside_a_text_is_written_as_json_writes_it():
    assert texts(read(line("two\nlines\r\n"))) == ["two\nlines\r\nb"]


@pytest.mark.parametrize("blank", [b"", b" ", b"\t", b"\r", b" \t \r"])
def test_blank_lines_are_passed_over_and_counted(blank: bytes):
    assert len(read(b"\n".join([blank, line(), blank, blank, line(), blank])).examples) == 2
    with pytest.raises(InvalidDataset, match=r"^line 4: "):
        read(b"\n".join([blank, line(), blank, b"{", line()]))


def test_space_around_a_line_is_no_part_of_it():
    assert texts(read(b"  \t" + line("x") + b"  ")) == ["xb"]


def test_the_last_line_may_or_may_not_end():
    assert read(line() + b"\n").examples == read(line()).examples


@pytest.mark.parametrize("start", [b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b"])
def test_bytes_that_are_no_utf8_are_refused_at_their_line(start: bytes):
    with pytest.raises(InvalidDataset, match=r"^line 1: not JSON"):
        read(start + line())


def test_utf16_is_refused_at_its_first_line():
    with pytest.raises(InvalidDataset, match=r"^line 1: not JSON"):
        read(line().decode().encode("utf-16"))


def test_one_very_long_line_is_read_whole_and_measured_in_tokens():
    long = "x" * 200_000
    assert texts(read(line(long), limit=200_002)) == [f"{long}b"]
    with pytest.raises(InvalidDataset, match=r"^line 1: 200002 tokens exceed max_length_tokens 200001"):
        read(line(long), limit=200_001)


@pytest.mark.parametrize(
    ("text", "kept"),
    [(b'{"prompt": "1", "prompt": "2", "completion": "b"}', "2b"), (b'{"completion": "1", "prompt": "a", "completion": "2"}', "a2")],
)
def test_of_a_key_that_comes_twice_the_last_counts_as_everywhere_in_json(text: bytes, kept: str):
    assert texts(read(text)) == [kept]


@pytest.mark.parametrize("value", [b"null", b"1", b'"text"', b"[]", b"true", b"{}", b"NaN", b"{} {}"])
def test_a_line_that_is_json_but_no_example_is_refused(value: bytes):
    with pytest.raises(InvalidDataset, match=r"^line 2: "):
        read(line() + b"\n" + value)


@pytest.mark.parametrize("field", ["prompt", "completion"])
@pytest.mark.parametrize("value", ["1", "null", '["a"]', '{"a": 1}', "true"])
def test_a_text_that_is_no_text_is_refused_by_its_field(field: str, value: str):
    other = "completion" if field == "prompt" else "prompt"
    with pytest.raises(InvalidDataset, match=f"^line 1: {field}: "):
        read(f'{{"{field}": {value}, "{other}": "x"}}'.encode())


@pytest.mark.parametrize(
    "turns", ["[]", "null", "{}", '["hi"]', '[{"role": "user"}]', '[{"content": "x"}]', '[{"role": "user", "content": 1}]']
)
def test_messages_that_are_none_are_refused(turns: str):
    with pytest.raises(InvalidDataset, match=r"^line 1: "):
        read(f'{{"messages": {turns}}}'.encode())


def test_a_line_that_is_both_kinds_is_neither():
    with pytest.raises(InvalidDataset, match=r"^line 1: .*Extra inputs"):
        read(b'{"messages": [{"role": "user", "content": "x"}], "prompt": "a", "completion": "b"}')


def test_special_tokens_written_as_text_by_a_user_end_no_learning_early():
    """A completion that already ends with the end-of-sequence token is not given a second one."""
    once = read(line("a", "b")).examples[0]
    assert read(line("a", f"b{END}")).examples[0].tokens == once.tokens


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \n"]), st.booleans())
def test_any_text_survives_any_way_of_writing_lines(pairs: list[tuple[str, str]], ending: bytes, escaped: bool):
    """Law: an example is the prompt's bytes and the completion's bytes, and exactly the completion and its end are learned."""
    written = [json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=escaped).encode() for prompt, completion in pairs]
    for (prompt, completion), example in zip(pairs, read(ending.join(written)).examples, strict=True):
        tokens = [*TOKENIZER.encode(prompt), *TOKENIZER.encode(completion, add_special_tokens=False)]
        assert list(example.tokens[: len(tokens)]) == tokens
        assert len(example.tokens) == len(tokens) + 1 and example.tokens[-1] == TOKENIZER.eos_token_id
        assert example.weights == (0.0,) * len(TOKENIZER.encode(prompt)) + (1.0,) * (len(example.tokens) - len(TOKENIZER.encode(prompt)))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_at_all_are_a_dataset_or_an_error_that_names_a_line(text: bytes):
    with pytest.raises(InvalidDataset, match=r"^(line \d+: |the dataset has no lines)"):
        read(text)


def test_a_byte_order_mark_is_no_part_of_the_first_line():
    """Notepad and Excel write one; it is not text."""
    assert texts(read(b"\xef\xbb\xbf" + line("1"))) == ["1b"]
