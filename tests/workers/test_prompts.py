"""Prompts: the base's own tokenizer and template, the same tokens from any thread, a typed error for what has none."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.errors import InvalidRequest
from mint_stream.messages.inference import ChatMessage, InferenceRequest
from mint_stream.workers.prompts import Prompts
from tests.factories import byte_tokenizer

IM_START, IM_END = 256, 257
PICKY = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user goes first') }}{% endif %}{{ messages[0]['content'] }}"
TOKENIZER = byte_tokenizer()


@pytest.fixture
def prompts() -> Prompts:
    return Prompts(TOKENIZER)


def asked(prompt: str | None = None, *turns: tuple[Any, str], tokens: tuple[int, ...] | None = None) -> InferenceRequest:
    messages = tuple(ChatMessage(role=role, content=content) for role, content in turns) or None
    return InferenceRequest(request_id="r-1", prompt=prompt, messages=messages, prompt_tokens=tokens)


def text_of(tokens: tuple[int, ...]) -> str:
    return str(TOKENIZER.decode(tokens))


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40).filter(lambda text: "<|" not in text))
def test_a_prompts_tokens_say_the_prompt(text: str) -> None:
    tokens = Prompts(TOKENIZER).encode(asked(text))
    assert len(tokens) == len(text.encode())
    assert text_of(tokens) == text


def test_a_conversation_goes_through_the_bases_template_up_to_where_it_is_to_go_on(prompts: Prompts) -> None:
    tokens = prompts.encode(asked(None, ("system", "brief"), ("user", "hi")))
    assert text_of(tokens) == "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert (tokens.count(IM_START), tokens.count(IM_END)) == (3, 2)


def test_what_a_user_says_of_other_turns_stays_what_the_user_said(prompts: Prompts) -> None:
    """The turns before are the ones given; nothing is dropped, reordered or merged."""
    turns = [("user", "one"), ("assistant", "two"), ("user", "three")]
    text = text_of(prompts.encode(asked(None, *turns)))
    assert [text.index(f"{role}\n{content}<|im_end|>") for role, content in turns] == sorted(
        text.index(f"{role}\n{content}<|im_end|>") for role, content in turns
    )


def test_tokens_that_are_given_are_taken_as_they_are(prompts: Prompts) -> None:
    assert prompts.encode(asked(tokens=(5, 300, 0))) == (5, 300, 0)


def test_a_base_without_a_template_says_what_to_send_instead() -> None:
    plain = Prompts(byte_tokenizer(template=None))
    assert plain.encode(asked("hi")) == (104, 105) or text_of(plain.encode(asked("hi"))) == "hi"
    with pytest.raises(InvalidRequest, match="no chat template: send `prompt` instead of `messages`"):
        plain.encode(asked(None, ("user", "hi")))


def test_a_template_that_refuses_is_quoted() -> None:
    with pytest.raises(InvalidRequest, match="refuses this conversation: the user goes first"):
        Prompts(byte_tokenizer(PICKY)).encode(asked(None, ("system", "hi")))


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{% if %}", "{{ messages[9]['content'] }}", "{{ nothing.at.all }}"])
def test_a_broken_template_is_a_refusal_and_not_the_end_of_the_worker(template: str) -> None:
    with pytest.raises(InvalidRequest, match="the base's chat template refuses"):
        Prompts(byte_tokenizer(template)).encode(asked(None, ("user", "hi")))


def test_a_prompt_that_comes_to_no_tokens_is_refused_by_its_id() -> None:
    with pytest.raises(InvalidRequest, match="the prompt of request r-1 has no tokens"):
        Prompts(byte_tokenizer("{{ '' }}")).encode(asked(None, ("user", "hi")))


def test_threads_that_encode_at_once_get_what_one_alone_gets(prompts: Prompts) -> None:
    requests = [asked("x" * (n % 50 + 1)) if n % 2 else asked(None, ("user", "y" * (n % 50))) for n in range(400)]
    alone = [prompts.encode(request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(prompts.encode, requests)) == alone
