"""The demo's data: the same for the same seed, nothing held out is trained on, every label there."""

import json
from collections import Counter

import pytest

from mint_stream.app.demo import DemoSize
from mint_stream.app.demo_data import LABELS, Example, examples, split
from mint_stream.trainer.dataset import read_dataset
from tests.factories import byte_tokenizer

SIZE = DemoSize()


@pytest.fixture(scope="module")
def found() -> list[Example]:
    """As the demo draws them."""
    return examples((SIZE.heldout + SIZE.training) // 8, seed=0)


def test_the_same_seed_gives_the_same_list_and_another_another(found: list[Example]) -> None:
    assert examples((SIZE.heldout + SIZE.training) // 8, seed=0) == found
    assert examples((SIZE.heldout + SIZE.training) // 8, seed=1) != found


def test_there_are_as_many_as_the_demo_asks_for(found: list[Example]) -> None:
    training, heldout = split(found, SIZE.heldout)
    assert len(heldout) == SIZE.heldout
    assert len(training) >= 0.9 * SIZE.training


def test_no_command_is_said_twice_and_none_is_both_trained_and_held_out(found: list[Example]) -> None:
    training, heldout = split(found, SIZE.heldout)
    assert len({example.prompt for example in found}) == len(found)
    assert not {example.command for example in training} & {example.command for example in heldout}
    assert [*heldout, *training] == found


def test_every_label_is_trained_and_held_out_and_none_dominates(found: list[Example]) -> None:
    for part in split(found, SIZE.heldout):
        counts = Counter(example.label for example in part)
        assert set(counts) == set(LABELS.values())
        assert max(counts.values()) <= len(part) / 4


def test_labels_are_one_word_each_and_no_label_begins_another() -> None:
    """An answer counts when it starts with the label, so no label may start another."""
    words = list(LABELS.values())
    assert len(set(words)) == len(words) == 8
    assert not [(one, other) for one in words for other in words if one != other and other.startswith(one)]


def test_a_prompt_names_all_topics_and_ends_where_the_answer_begins(found: list[Example]) -> None:
    for example in found:
        first, command, last = example.prompt.splitlines()
        assert first == f"Topics: {', '.join(LABELS.values())}."
        assert command == f"Command: {example.command}" and example.command.strip() == example.command != ""
        assert last == "Topic:"
        assert "{" not in example.prompt and "<" not in example.prompt


def test_a_line_of_the_dataset_is_one_the_trainer_reads_whole(found: list[Example]) -> None:
    some = found[:40]
    dataset = read_dataset("\n".join(example.line() for example in some).encode(), byte_tokenizer(), 512)
    assert len(dataset.examples) == len(some)
    fields = json.loads(some[0].line())
    assert fields["completion"] == f" {some[0].label}" and fields["prompt"] == some[0].prompt
