"""The error tree: every leaf has a code of its own and one of three consequences, and the drawing at the top is the tree."""

import re
from pathlib import Path

import pytest

from mint_stream import errors
from mint_stream.client.requests import raise_for_error
from mint_stream.errors import MintError, Reject, Retry, Stop, leaves
from mint_stream.messages.inference import InferenceResult
from mint_stream.messages.shared import ErrorBody

OURS = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MintError)}
LEAVES = OURS - {MintError, Reject, Retry, Stop}
ROOT = Path(__file__).parents[1]

every_leaf = pytest.mark.parametrize("leaf", sorted(LEAVES, key=lambda leaf: leaf.__name__), ids=lambda leaf: leaf.__name__)


@every_leaf
def test_a_leaf_is_exactly_one_of_reject_retry_and_stop(leaf: type[MintError]) -> None:
    assert sum(issubclass(leaf, consequence) for consequence in (Reject, Retry, Stop)) == 1
    assert leaf.__bases__[0] in (Reject, Retry, Stop)


@every_leaf
def test_a_leaf_is_found_by_its_code(leaf: type[MintError]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", leaf.code)
    assert leaf.code.replace("-", "") == leaf.__name__.lower()
    assert leaves()[leaf.code] is leaf
    assert leaf("x").code == leaf.code


@every_leaf
def test_a_leaf_says_in_one_sentence_what_happened(leaf: type[MintError]) -> None:
    assert leaf.__doc__ is not None
    assert leaf.__doc__.strip().endswith(".")
    assert "\n" not in leaf.__doc__.strip()


@every_leaf
def test_a_leaf_is_raised_somewhere(leaf: type[MintError]) -> None:
    sources = (path.read_text() for path in (ROOT / "mint_stream").rglob("*.py") if path.name != "errors.py")
    assert any(re.search(rf"\b{leaf.__name__}\b", source) for source in sources)


@pytest.mark.parametrize("consequence", [Reject, Retry, Stop])
def test_the_drawing_at_the_top_of_the_module_is_the_tree(consequence: type[MintError]) -> None:
    assert drawn_leaves(consequence) == {leaf.__name__ for leaf in LEAVES if issubclass(leaf, consequence)}


def drawn_leaves(consequence: type[MintError]) -> set[str]:
    """The names under one branch of the drawing."""
    drawing = (errors.__doc__ or "").split("Each leaf")[0]
    branch = re.split(r"[├└]── (?=Reject|Retry|Stop)", drawing)
    [below] = [part.split("\n", 1)[1] for part in branch if part.startswith(consequence.__name__)]
    return set(re.findall(r"[A-Z]\w+", below))


def test_no_two_leaves_share_a_code() -> None:
    assert len({leaf.code for leaf in LEAVES}) == len(LEAVES)
    assert set(leaves(Retry)) < set(leaves()) and "store-unavailable" in leaves(Retry)


@every_leaf
def test_an_error_that_crossed_kafka_is_raised_as_the_class_it_was(leaf: type[MintError]) -> None:
    body = ErrorBody(code=leaf.code, message="the reason")
    result = InferenceResult(request_id="r", tenant="t", request_digest="a" * 64, status="error", error=body, completed_at_ms=1)
    with pytest.raises(leaf, match=r"^request r: the reason$"):
        raise_for_error(result)


def test_an_error_of_a_newer_fleet_is_still_an_error_of_ours() -> None:
    body = ErrorBody(code="not-yet-invented", message="the reason")
    result = InferenceResult(request_id="r", tenant="t", request_digest="a" * 64, status="error", error=body, completed_at_ms=1)
    with pytest.raises(MintError, match="the reason"):
        raise_for_error(result)
