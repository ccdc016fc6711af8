"""Graders and the items they grade."""

import importlib
import json
import sys
import types

import pytest

from mint_stream.errors import InvalidDataset, InvalidRule, MissingExtra
from mint_stream.promotion.graders import check, grade, named
from mint_stream.promotion.items import MOST_ITEMS, Item, read_items


def item(answer: str, **metadata: object) -> Item:
    return Item(prompt="?", answer=answer, metadata=metadata)


@pytest.mark.parametrize(
    ("grader", "answer", "text", "score"),
    [
        ("exact-match", "yes", " yes\n", 1),
        ("exact-match", "yes", "yes!", 0),
        ("contains", "42", "it is 42.", 1),
        ("contains", "42", "it is 4 2", 0),
        ("regex", r"^\d+$", "17", 1),
        ("regex", r"^\d+$", "17 or so", 0),
    ],
)
def test_a_built_in_grader_gives_one_or_nothing(grader: str, answer: str, text: str, score: float) -> None:
    assert grade(named(grader), text, item(answer)) == score


def test_an_unknown_grader_is_told_which_there_are() -> None:
    with pytest.raises(InvalidRule, match=r"exact-match.*reasoning-gym:TASK"):
        named("exactmatch")
    with pytest.raises(InvalidRule, match="nothing after a colon"):
        named("contains:more")


def test_an_item_that_a_grader_cannot_use_is_named_before_anything_is_asked() -> None:
    with pytest.raises(InvalidDataset, match=r"item 2.*no pattern"):
        check("regex", [item("a+"), item("(")])
    with pytest.raises(InvalidDataset, match="longer than 1000"):
        check("regex", [item("a" * 1001)])


@pytest.mark.parametrize(
    ("given", "words"), [(lambda *_: 2.0, "no score"), (lambda *_: float("nan"), "no score"), (lambda *_: {}["x"], "KeyError")]
)
def test_a_grader_that_misbehaves_is_an_error_and_no_score(given: object, words: str) -> None:
    with pytest.raises(InvalidDataset, match=words):
        grade(given, "text", item("a"))


def test_a_reasoning_gym_task_grades_its_own_entries() -> None:
    gym = pytest.importorskip("reasoning_gym", reason="the extra `tasks` is not installed")
    entries = list(gym.create_dataset("leg_counting", size=3, seed=1))
    lines = [json.dumps({"prompt": one["question"], "answer": one["answer"], "metadata": one["metadata"]}) for one in entries]
    items = read_items("\n".join(lines).encode())
    grader = check("reasoning-gym:leg_counting", items)
    assert [grade(grader, one.answer, one) for one in items] == [1, 1, 1]
    assert grade(grader, "no idea", items[0]) == 0
    with pytest.raises(InvalidRule, match="no_such_task"):
        named("reasoning-gym:no_such_task")


def test_without_its_package_a_reasoning_gym_grader_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingExtra, match=r"mint-stream\[tasks\]"):
        named("reasoning-gym:leg_counting")


def test_an_installed_package_offers_graders_by_entry_point(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip would leave it: a module, and its metadata on the path."""
    (tmp_path / "shouting.py").write_text("def shouting(text, item):\n    return float(text.isupper())\n")
    (tmp_path / "shouting-1.dist-info").mkdir()
    (tmp_path / "shouting-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1\n")
    (tmp_path / "shouting-1.dist-info" / "entry_points.txt").write_text("[mint_stream.graders]\nshouting = shouting:shouting\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert grade(named("shouting"), "HELLO", item("")) == 1
    assert isinstance(sys.modules.pop("shouting"), types.ModuleType)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "no lines"),
        (b'{"prompt": "a"}', "line 1: answer"),
        (b'{"prompt": "a", "answer": "b"}\n\n{"answer": "b"}', "line 3"),
        (b'{"prompt": "a", "answer": "b", "expected": 1}', "line 1: expected"),
        (b"{" * 100_000, "line 1"),
        (b'{"prompt": "a", "answer": "b"}\n' * (MOST_ITEMS + 1), "at most"),
    ],
)
def test_a_bad_dataset_names_its_first_bad_line(text: bytes, words: str) -> None:
    with pytest.raises(InvalidDataset, match=words):
        read_items(text)


def test_items_ask_by_prompt_or_by_messages() -> None:
    chat = '{"messages": [{"role": "user", "content": "hi"}], "answer": "hello"}'
    first, second = read_items(b'\xef\xbb\xbf{"prompt": "a", "answer": "b"}\n\n' + chat.encode())
    assert first.question == {"prompt": "a"}
    assert second.question["messages"][0].content == "hi"
