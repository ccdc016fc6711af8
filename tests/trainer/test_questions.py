"""Questions: items in the tokens that serving would make of their prompts."""

import json
from typing import Any

import pytest

from mint_stream.errors import InvalidDataset
from mint_stream.messages.inference import InferenceRequest
from mint_stream.trainer.questions import read_questions
from mint_stream.workers.prompts import Prompts

CHAT = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"}], "answer": "4"}
PLAIN = {"prompt": "2+2=", "answer": "4", "metadata": {"level": 1}}


def text(*lines: Any) -> bytes:
    return "\n".join(json.dumps(line) for line in lines).encode()


def test_a_question_has_the_tokens_that_a_request_with_its_prompt_would_have(tokenizer: Any) -> None:
    found = read_questions(text(PLAIN, CHAT), tokenizer, 128, 8)
    asked = [InferenceRequest(request_id="r", **question.item.question) for question in found.questions]
    assert [question.tokens for question in found.questions] == [Prompts(tokenizer).encode(request) for request in asked]
    assert [question.length for question in found.questions] == [len(question.tokens) + 8 for question in found.questions]
    assert (len(found), found.longest) == (2, found.questions[1].length) and not found.examples
    assert found.questions[0].item.metadata == {"level": 1}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (PLAIN | {"prompt": "x" * 130}, r"item 2: 130 tokens and 8 of an answer exceed max_length_tokens 128"),
        ({"prompt": "2+2="}, r"line 2: answer"),
        (CHAT | {"messages": [*CHAT["messages"], CHAT["messages"][0]]}, "item 2: the chat template refuses it"),
    ],
    ids=["long", "unanswered", "refused"],
)
def test_the_first_question_that_cannot_be_is_named(tokenizer: Any, line: Any, words: str) -> None:
    with pytest.raises(InvalidDataset, match=words):
        read_questions(text(PLAIN, line), tokenizer, 128, 8)


def test_a_conversation_needs_a_template(plain_tokenizer: Any) -> None:
    assert read_questions(text(PLAIN), plain_tokenizer, 128, 8).questions[0].tokens == tuple(plain_tokenizer.encode("2+2="))
    with pytest.raises(InvalidDataset, match="item 1: the base's tokenizer has no chat template"):
        read_questions(text(CHAT), plain_tokenizer, 128, 8)
