"""The data of the reinforcement benchmark, as files that `jobs submit` takes: what warms a policy up, its questions, and held-out ones."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mint_stream.app.demo_data import examples, split
from mint_stream.promotion.items import Item

WARM_UP, QUESTIONS, HELD_OUT = "warm-up.jsonl", "questions.jsonl", "held-out.jsonl"
TRAINING = 640
"""Commands beside the held-out ones."""
WARMING = 160
"""Of those: what the warm-up shows with its answer. The others are only asked."""


@dataclass(frozen=True)
class Data:
    """Where the files are, and what the policy is judged by."""

    warm_up_uri: str
    questions_uri: str
    heldout: tuple[Item, ...]


def write_data(directory: Path, heldout: int) -> Data:
    """Write the three files: {prompt, completion} for method sft, and {prompt, answer} twice. No command is in two of them."""
    directory.mkdir(parents=True, exist_ok=True)
    training, held_out = split(examples((heldout + TRAINING) // 8, seed=0), heldout)
    items = tuple(Item(prompt=one.prompt, answer=one.label) for one in held_out)
    asked = [Item(prompt=one.prompt, answer=one.label) for one in training[WARMING:]]
    _write(directory / WARM_UP, (one.line() for one in training[:WARMING]))
    for name, lines in ((QUESTIONS, asked), (HELD_OUT, items)):
        _write(directory / name, (json.dumps({"prompt": item.prompt, "answer": item.answer}) for item in lines))
    return Data((directory / WARM_UP).as_uri(), (directory / QUESTIONS).as_uri(), items)


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
