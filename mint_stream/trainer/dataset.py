"""Supervised datasets: JSON lines to token ids with a weight for each token, and the order in which a job sees them.

A line is `{"messages": [...]}` (chat, through the tokenizer's own template; assistant turns are learned) or
`{"prompt": ..., "completion": ...}` (plain text; the completion and an end-of-sequence token are learned). A dataset is read whole before
anything starts: the first line that cannot be used raises InvalidDataset with its number.
"""

import hashlib
from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jinja2
from pydantic import ValidationError
from pydantic_core import from_json

from mint_stream.errors import InvalidDataset
from mint_stream.messages.inference import ChatMessage
from mint_stream.messages.record import Record

TooLong = Literal["refuse", "truncate"]


class ChatTokenizer(Protocol):
    """What a dataset needs of the base's tokenizer; transformers' fast tokenizers have it."""

    chat_template: Any
    eos_token_id: int | None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str: ...


class ChatLine(Record):
    """A conversation; every assistant turn is learned."""

    messages: tuple[ChatMessage, ...]


class CompletionLine(Record):
    """A plain text and what should follow it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Example:
    """One sequence. `weights[i]` is how much predicting `tokens[i]` from those before it counts; the first is always 0."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def learned(self) -> float:
        """The sum of the weights."""
        return sum(self.weights)


@dataclass(frozen=True)
class Dataset:
    """The examples of a job, whole and valid, and the digest of the bytes they came from."""

    examples: tuple[Example, ...]
    digest: str


def read_dataset(text: bytes, tokenizer: ChatTokenizer, max_length_tokens: int, too_long: TooLong = "refuse") -> Dataset:
    """Every line of `text` as an Example. Blank lines and a byte order mark are skipped. Raises InvalidDataset by line."""
    examples: list[Example] = []
    for number, line in enumerate(text.removeprefix(BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            try:
                examples.append(_fit(_example(line, tokenizer), max_length_tokens, too_long))
            except InvalidDataset as error:
                raise InvalidDataset(f"line {number}: {error}") from error
    if not examples:
        raise InvalidDataset("the dataset has no lines")
    return Dataset(tuple(examples), hashlib.sha256(text).hexdigest())


def _example(line: bytes, tokenizer: ChatTokenizer) -> Example:
    parsed = _parse(line)
    return _chat(parsed, tokenizer) if isinstance(parsed, ChatLine) else _completion(parsed, tokenizer)


def _parse(line: bytes) -> ChatLine | CompletionLine:
    try:
        value = from_json(line)  # which bounds its depth and refuses text that no tokenizer takes
    except ValueError as error:
        raise InvalidDataset(f"not JSON: {error}") from error
    if not isinstance(value, dict) or not ({"messages", "prompt"} & value.keys()):
        raise InvalidDataset('a line is {"messages": [...]} or {"prompt": ..., "completion": ...}')
    kind = ChatLine if "messages" in value else CompletionLine
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise InvalidDataset(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error


def _completion(line: CompletionLine, tokenizer: ChatTokenizer) -> Example:
    if not line.prompt or not line.completion:
        raise InvalidDataset("prompt and completion must not be empty")
    prompt = tokenizer.encode(line.prompt)
    completion = tokenizer.encode(line.completion, add_special_tokens=False)
    if tokenizer.eos_token_id is not None and completion[-1:] != [tokenizer.eos_token_id]:
        completion.append(tokenizer.eos_token_id)
    return _joined([(prompt, False), (completion, True)], tokenizer.eos_token_id)


def _chat(line: ChatLine, tokenizer: ChatTokenizer) -> Example:
    """Assistant turns are found by rendering: what the template adds after the generation prompt is the turn.

    Each piece is tokenized by itself, so what precedes a turn has exactly the tokens that serving sees when it is asked for that turn.
    """
    if tokenizer.chat_template is None:
        raise InvalidDataset("the base's tokenizer has no chat template: give prompt and completion")
    pieces: list[tuple[list[int], bool]] = []
    for text, learned in _turns(line, tokenizer):
        pieces.append((tokenizer.encode(text, add_special_tokens=False), learned))
    return _joined(pieces, tokenizer.eos_token_id)


def _turns(line: ChatLine, tokenizer: ChatTokenizer) -> list[tuple[str, bool]]:
    turns = [number for number, message in enumerate(line.messages) if message.role == "assistant"]
    if not turns:
        raise InvalidDataset("no assistant turn, so there is nothing to learn")
    if turns[0] == 0:
        raise InvalidDataset("the first message is the assistant's: something must come before it")
    pieces: list[tuple[str, bool]] = []
    seen = ""
    for turn in turns:
        before = _render(line.messages[:turn], tokenizer, ask=True)
        after = _render(line.messages[: turn + 1], tokenizer, ask=False)
        if not (before.startswith(seen) and after.startswith(before)):
            raise InvalidDataset(f"messages.{turn}: the chat template rewrites earlier turns; give one assistant turn a line, the last")
        pieces += [(before[len(seen) :], False), (after[len(before) :], True)]
        seen = after
    return pieces


def _render(messages: Sequence[ChatMessage], tokenizer: ChatTokenizer, ask: bool) -> str:
    try:
        return tokenizer.apply_chat_template([message.model_dump() for message in messages], tokenize=False, add_generation_prompt=ask)
    except jinja2.TemplateError as error:
        raise InvalidDataset(f"the chat template refuses it: {error}") from error


def _joined(pieces: Sequence[tuple[list[int], bool]], eos_token_id: int | None) -> Example:
    tokens: list[int] = []
    weights: list[float] = []
    for piece, learned in pieces:
        until = _learned_until(piece, eos_token_id) if learned else 0
        tokens += piece
        weights += [1.0] * until + [0.0] * (len(piece) - until)
    return Example(tuple(tokens), (0.0, *weights[1:]))


def _learned_until(piece: list[int], eos_token_id: int | None) -> int:
    """Serving stops at the end-of-sequence token, so what a template writes after the last one is never generated."""
    ends = [position + 1 for position, token in enumerate(piece) if token == eos_token_id]
    return ends[-1] if ends else len(piece)


def _fit(example: Example, max_length_tokens: int, too_long: TooLong) -> Example:
    length = len(example.tokens)
    if length > max_length_tokens and too_long == "refuse":
        raise InvalidDataset(
            f"{length} tokens exceed max_length_tokens {max_length_tokens}: shorten it, raise the limit, or set too_long to truncate"
        )
    fitted = Example(example.tokens[:max_length_tokens], example.weights[:max_length_tokens])
    if not fitted.learned:
        raise InvalidDataset(f"nothing to learn within its first {min(length, max_length_tokens)} tokens")
    return fitted
