"""Datasets: JSON lines to token ids with a weight for each token.

For `sft` a line is `{"messages": [...]}` (chat, through the tokenizer's own template; assistant turns are learned) or
`{"prompt": ..., "completion": ...}` (plain text; the completion and an end-of-sequence token are learned). For `dpo` it is
`{"messages" or "prompt": ..., "chosen": ..., "rejected": ...}`: two answers, of which the first is preferred. For `grpo` see
questions.py. A dataset is read whole before anything starts: the first line that cannot be used raises InvalidDataset with its number.
"""

import hashlib
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jinja2
from pydantic import ValidationError
from pydantic_core import from_json

from mint_stream.errors import InvalidDataset
from mint_stream.messages.inference import ChatMessage
from mint_stream.messages.record import Record
from mint_stream.messages.training import Method
from mint_stream.trainer.examples import Example, Learnable, Preference, Question

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


class PreferenceLine(Record):
    """A plain text and two answers to it."""

    prompt: str
    chosen: str
    rejected: str


class ChatPreferenceLine(Record):
    """A conversation and two answers of the assistant to it."""

    messages: tuple[ChatMessage, ...]
    chosen: str
    rejected: str


Line = ChatLine | CompletionLine | PreferenceLine | ChatPreferenceLine
METHOD_LINES: dict[Method, tuple[type[Line], type[Line], str]] = {
    "sft": (ChatLine, CompletionLine, '{"messages": [...]} or {"prompt": ..., "completion": ...}'),
    "dpo": (ChatPreferenceLine, PreferenceLine, '{"messages" or "prompt": ..., "chosen": ..., "rejected": ...}'),
}
"""By method: a line with messages, a line with a prompt, and both in words."""


@dataclass(frozen=True)
class Dataset:
    """The examples of a job, whole and valid, and the digest of the bytes they came from; questions instead, where answers are drawn."""

    examples: tuple[Learnable, ...]
    digest: str
    questions: tuple[Question, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of its longest line."""
        return max(one.length for one in (*self.examples, *self.questions))

    def __len__(self) -> int:
        """Lines."""
        return len(self.examples) + len(self.questions)


def read_dataset(
    text: bytes, tokenizer: ChatTokenizer, max_length_tokens: int, too_long: TooLong = "refuse", method: Method = "sft"
) -> Dataset:
    """Every line of `text` as the method learns it. Blank lines and a byte order mark are skipped. Raises InvalidDataset by line.

    `max_length_tokens` holds for each sequence.
    """
    examples: list[Learnable] = []
    for number, line in enumerate(text.removeprefix(BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            try:
                examples.append(_learnable(_parse(line, method), tokenizer, lambda one: _fit(one, max_length_tokens, too_long)))
            except InvalidDataset as error:
                raise InvalidDataset(f"line {number}: {error}") from error
    if not examples:
        raise InvalidDataset("the dataset has no lines")
    return Dataset(tuple(examples), hashlib.sha256(text).hexdigest())


def _learnable(line: Line, tokenizer: ChatTokenizer, fit: Callable[[Example], Example]) -> Learnable:
    match line:
        case ChatLine():
            return fit(_chat(line, tokenizer))
        case CompletionLine():
            return fit(_completion(line, tokenizer))
        case PreferenceLine():
            plain = [CompletionLine(prompt=line.prompt, completion=answer) for answer in (line.chosen, line.rejected)]
            return Preference(*(fit(_completion(one, tokenizer)) for one in plain))
        case ChatPreferenceLine():
            return Preference(*(fit(_answer(line.messages, answer, tokenizer)) for answer in (line.chosen, line.rejected)))


def _parse(line: bytes, method: Method) -> Line:
    try:
        value = from_json(line)  # which bounds its depth and refuses text that no tokenizer takes
    except ValueError as error:
        raise InvalidDataset(f"not JSON: {error}") from error
    chat, plain, words = METHOD_LINES[method]
    if not isinstance(value, dict) or not ({"messages", "prompt"} & value.keys()):
        raise InvalidDataset(f"a line is {words}")
    kind = chat if "messages" in value else plain
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise InvalidDataset(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error


def _answer(messages: tuple[ChatMessage, ...], answer: str, tokenizer: ChatTokenizer) -> Example:
    """The conversation with one more turn, the only one that is learned."""
    if not answer:
        raise InvalidDataset("chosen and rejected must not be empty")
    example = _chat(ChatLine(messages=(*messages, ChatMessage(role="assistant", content=answer))), tokenizer)
    last = _last_run(example.weights)
    return Example(example.tokens, (0.0,) * last + example.weights[last:])


def _last_run(weights: Sequence[float]) -> int:
    """Where the last unbroken run of weights begins."""
    end = max(place for place, weight in enumerate(weights) if weight)
    return max((place + 1 for place in range(end) if not weights[place]), default=0)


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
        before = rendered(line.messages[:turn], tokenizer, ask=True)
        after = rendered(line.messages[: turn + 1], tokenizer, ask=False)
        if not (before.startswith(seen) and after.startswith(before)):
            raise InvalidDataset(f"messages.{turn}: the chat template rewrites earlier turns; give one assistant turn a line, the last")
        pieces += [(before[len(seen) :], False), (after[len(before) :], True)]
        seen = after
    return pieces


def rendered(messages: Sequence[ChatMessage], tokenizer: ChatTokenizer, ask: bool) -> str:
    """The conversation as text, `ask`: up to where the assistant's next turn begins. Raises InvalidDataset."""
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
