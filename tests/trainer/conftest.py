"""Tokenizers whose tokens are bytes, with three kinds of chat templates."""

from typing import Any

import pytest

from tests.factories import byte_tokenizer

CHATML = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}{{ raise_exception('system goes first') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer(CHATML)


@pytest.fixture(scope="session")
def rewriting_tokenizer() -> Any:
    """A template that drops what the assistant said in earlier turns, as thinking models' templates do."""
    return byte_tokenizer(
        "{% for message in messages %}[{{ message['role'] }}]{% if message['role'] != 'assistant' or loop.last %}{{ message['content'] }}"
        "{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )


@pytest.fixture(scope="session")
def plain_tokenizer() -> Any:
    return byte_tokenizer(None)
