"""The numeric fingerprint: equal in equal circumstances, another when anything that moves bits is another."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mint_stream.kernels import native_library
from mint_stream.model.base import ResidentBase, load_base
from mint_stream.trainer import fingerprint
from mint_stream.trainer.fingerprint import numeric_facts, numeric_fingerprint
from tests.factories import byte_tokenizer, tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ResidentBase:
    return load_base(tiny_base(tmp_path_factory.mktemp("base") / "tiny"), dtype=torch.float32)


@pytest.fixture
def other_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield
    torch.set_num_threads(before)


def differing(base: ResidentBase, other: ResidentBase) -> set[str]:
    one, two = numeric_facts(base), numeric_facts(other)
    assert (numeric_fingerprint(base) == numeric_fingerprint(other)) == (one == two)
    return {name for name in one if one[name] != two[name]}


def test_the_same_base_in_the_same_process_has_the_same_fingerprint(base: ResidentBase) -> None:
    assert numeric_fingerprint(base) == numeric_fingerprint(load_base(base.path, dtype=torch.float32))
    assert len(numeric_fingerprint(base)) == 64


def test_another_dtype_another_base_and_another_tokenizer_show_by_name(base: ResidentBase) -> None:
    assert differing(base, load_base(base.path, dtype=torch.bfloat16)) == {"dtype"}
    assert differing(base, replace(base, digest="0" * 64)) == {"base"}
    assert differing(base, replace(base, tokenizer=byte_tokenizer(template="{{ '' }}"))) == {"tokenizer"}


def test_more_threads_are_another_circumstance(base: ResidentBase, request: pytest.FixtureRequest) -> None:
    before = numeric_facts(base)
    request.getfixturevalue("other_threads")
    after = numeric_facts(base)
    assert {name for name in before if before[name] != after[name]} == {"threads"}


def test_the_compiled_kernels_count_by_their_source_and_by_what_was_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "kernel.cpp").write_text("int one;")
    before = fingerprint._sources(tmp_path)
    (tmp_path / "kernel.cpp").write_text("int two;")
    assert fingerprint._sources(tmp_path) != before
    assert (native_library.name() is None) == (native_library.kernels() is None)


def test_every_fact_is_said(base: ResidentBase) -> None:
    facts = numeric_facts(base)
    assert all(facts[name] for name in facts if name not in ("triton", "torchao")), facts
    assert facts["torch"] == torch.__version__
