"""A dataset is usable as a whole, or its first bad line is named."""

import json
from typing import Any

import pytest

from mint_stream.errors import InvalidDataset
from mint_stream.trainer.dataset import read_dataset
from mint_stream.trainer.examples import Example, Preference

GOOD = {"prompt": "2+2=", "completion": "4"}


def lines(*values: Any) -> bytes:
    return b"\n".join(value if isinstance(value, bytes) else json.dumps(value).encode() for value in values)


def only(tokenizer: Any, value: Any, **options: Any) -> Example:
    return read_dataset(lines(value), tokenizer, options.pop("max_length_tokens", 200), **options).examples[0]


def learned(tokenizer: Any, example: Example) -> str:
    return tokenizer.decode([token for token, weight in zip(example.tokens, example.weights, strict=True) if weight])


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_a_completion_and_the_end_of_sequence_are_learned_and_the_prompt_is_not(tokenizer: Any) -> None:
    example = only(tokenizer, GOOD)
    assert learned(tokenizer, example) == "4<|im_end|>" and tokenizer.decode(example.tokens) == "2+2=4<|im_end|>"


def test_only_assistant_turns_are_learned_each_to_its_end_token(tokenizer: Any) -> None:
    example = only(tokenizer, chat(("system", "be brief"), ("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "ciao")))
    assert learned(tokenizer, example) == "hello<|im_end|>ciao<|im_end|>"
    whole = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
    assert tokenizer.decode(example.tokens).startswith(whole)


def test_a_trailing_user_turn_is_not_rendered_because_nothing_of_it_is_learned(tokenizer: Any) -> None:
    example = only(tokenizer, chat(("user", "hi"), ("assistant", "hello"), ("user", "unanswered")))
    assert "unanswered" not in tokenizer.decode(example.tokens)


def test_what_precedes_a_turn_has_the_tokens_serving_sees_when_asked_for_it(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]
    asked = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    example = only(tokenizer, chat(("user", "hi"), ("assistant", "\nhello")))
    assert list(example.tokens[: len(asked)]) == asked and example.weights[: len(asked)] == (0.0,) * len(asked)
    assert example.weights[len(asked)] == 1.0


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{not json", "not JSON"),
        (b'{"prompt": "\xff", "completion": "x"}', "not JSON"),
        pytest.param(b'{"prompt": ' + b"[" * 50_000, "not JSON", id="deeper than any parser goes"),
        (b'{"prompt": "\\ud800", "completion": "x"}', "not JSON"),
        (b"[1]", "a line is"),
        ({"text": "x"}, "a line is"),
        ({"prompt": "x"}, "completion: Field required"),
        ({"prompt": "x", "completion": "y", "weight": 2}, "weight: Extra inputs"),
        ({"prompt": "", "completion": "y"}, "must not be empty"),
        ({"prompt": "x", "completion": ""}, "must not be empty"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        (chat(("user", "hi")), "no assistant turn"),
        (chat(("assistant", "hi")), "the first message is the assistant's"),
        (chat(("user", "hi"), ("system", "late"), ("assistant", "x")), "the chat template refuses it: system goes first"),
        ({"prompt": "x" * 300, "completion": "y"}, "302 tokens exceed max_length_tokens 200"),
    ],
)
def test_the_first_bad_line_is_named(tokenizer: Any, bad: Any, reason: str) -> None:
    with pytest.raises(InvalidDataset, match=r"^line 17: ") as raised:
        read_dataset(lines(*[GOOD] * 15, b"", bad, GOOD, b"also bad"), tokenizer, 200)
    assert reason in str(raised.value)


def test_an_empty_dataset_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidDataset, match="no lines"):
        read_dataset(b"\n \n", tokenizer, 200)


def test_a_long_line_is_cut_at_the_end_when_that_is_asked_for(tokenizer: Any) -> None:
    example = only(tokenizer, {"prompt": "abc", "completion": "defgh"}, max_length_tokens=5, too_long="truncate")
    assert tokenizer.decode(example.tokens) == "abcde" and learned(tokenizer, example) == "de"


def test_a_line_cut_before_anything_is_learned_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidDataset, match="line 1: nothing to learn within its first 3 tokens"):
        only(tokenizer, {"prompt": "abc", "completion": "d"}, max_length_tokens=3, too_long="truncate")


def test_a_template_that_rewrites_earlier_turns_takes_one_assistant_turn_a_line(rewriting_tokenizer: Any) -> None:
    assert learned(rewriting_tokenizer, only(rewriting_tokenizer, chat(("user", "hi"), ("assistant", "yes")))) == "yes<|im_end|>"
    with pytest.raises(InvalidDataset, match=r"line 1: messages\.3: the chat template rewrites earlier turns"):
        only(rewriting_tokenizer, chat(("user", "hi"), ("assistant", "yes"), ("user", "so"), ("assistant", "no")))


def test_chat_needs_a_template(plain_tokenizer: Any) -> None:
    with pytest.raises(InvalidDataset, match="no chat template"):
        only(plain_tokenizer, chat(("user", "hi"), ("assistant", "yes")))


def test_the_digest_is_of_the_bytes_read(tokenizer: Any) -> None:
    assert read_dataset(lines(GOOD), tokenizer, 200).digest != read_dataset(lines(GOOD) + b"\n", tokenizer, 200).digest


def preference(tokenizer: Any, value: Any, **options: Any) -> Preference:
    (pair,) = read_dataset(lines(value), tokenizer, 200, method="dpo", **options).examples
    assert isinstance(pair, Preference)
    return pair


def test_a_preference_is_two_answers_to_one_prompt(tokenizer: Any) -> None:
    pair = preference(tokenizer, {"prompt": "2+2=", "chosen": "4", "rejected": "five"})
    assert [learned(tokenizer, one) for one in pair.sequences] == ["4<|im_end|>", "five<|im_end|>"]
    assert pair.chosen == only(tokenizer, GOOD) and pair.length == pair.chosen.length + pair.rejected.length


def test_of_a_chat_preference_the_answer_alone_is_learned_whatever_the_assistant_said_before(tokenizer: Any) -> None:
    turns = chat(("user", "hi"), ("assistant", "hello"), ("user", "bye"))
    pair = preference(tokenizer, turns | {"chosen": "ciao", "rejected": "no"})
    assert [learned(tokenizer, one) for one in pair.sequences] == ["ciao<|im_end|>", "no<|im_end|>"]
    whole = only(tokenizer, chat(("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "ciao")))
    assert pair.chosen.tokens == whole.tokens


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (GOOD, "chosen: Field required"),
        ({"prompt": "x", "chosen": "y"}, "rejected: Field required"),
        ({"prompt": "x", "chosen": "y", "rejected": ""}, "must not be empty"),
        (chat(("user", "hi")) | {"chosen": "", "rejected": "y"}, "must not be empty"),
        ({"chosen": "x", "rejected": "y"}, 'a line is {"messages" or "prompt"'),
        ({"prompt": "x", "chosen": "y", "rejected": "z" * 300}, "exceed max_length_tokens 200"),
    ],
)
def test_a_line_that_is_no_preference_is_named(tokenizer: Any, bad: Any, reason: str) -> None:
    with pytest.raises(InvalidDataset, match=r"^line 2: ") as raised:
        read_dataset(lines({"prompt": "x", "chosen": "y", "rejected": "z"}, bad), tokenizer, 200, method="dpo")
    assert reason in str(raised.value)
