"""The dataset of a job that draws its own answers: the items of promotion.items, each a question and what a grader has to know."""

import hashlib

from mint_stream.errors import InvalidDataset
from mint_stream.promotion.items import Item, read_items
from mint_stream.trainer.dataset import ChatTokenizer, Dataset, rendered
from mint_stream.trainer.examples import Question


def read_questions(text: bytes, tokenizer: ChatTokenizer, max_length_tokens: int, max_tokens: int) -> Dataset:
    """Every item, its prompt in the tokens that serving would make of it. Raises InvalidDataset naming the first that cannot be used.

    A prompt and its answer of up to `max_tokens` have to fit into `max_length_tokens`: a question cannot be cut."""
    questions = []
    for number, item in enumerate(read_items(text), start=1):
        try:
            tokens = _prompt(item, tokenizer)
        except InvalidDataset as error:
            raise InvalidDataset(f"item {number}: {error}") from error
        if (length := len(tokens) + max_tokens) > max_length_tokens:
            raise InvalidDataset(
                f"item {number}: {len(tokens)} tokens and {max_tokens} of an answer exceed max_length_tokens {max_length_tokens}: "
                "shorten it, raise the limit, or lower max_tokens"
            )
        questions.append(Question(tokens, item, length))
    return Dataset((), hashlib.sha256(text).hexdigest(), tuple(questions))


def _prompt(item: Item, tokenizer: ChatTokenizer) -> tuple[int, ...]:
    if item.prompt is not None:
        return tuple(tokenizer.encode(item.prompt))
    if tokenizer.chat_template is None:
        raise InvalidDataset("the base's tokenizer has no chat template: give prompt and answer")
    return tuple(tokenizer.encode(rendered(item.messages or (), tokenizer, ask=True), add_special_tokens=False))
