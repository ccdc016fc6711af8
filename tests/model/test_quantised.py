"""Adapters over a base stored in int8: what PEFT computes over the same base, in serving and in training."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, TorchAoConfig

from mint_stream.errors import BaseUnusable, MissingExtra
from mint_stream.model.base import load_base
from mint_stream.model.forward import PackedModel
from mint_stream.model.quantised import check_quantised
from mint_stream.model.tiny import linear_paths
from mint_stream.trainer.exact_rows import ALONE, exact_rows
from mint_stream.trainer.trainer import Trainer
from tests.engine.test_parity import CONFIGS, _assert_parity, _oracle
from tests.factories import VOCABULARY, byte_tokenizer, tiny_base
from tests.model.test_training_passes import _job, _loss, _tokens, _train

INSTALLED = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not INSTALLED, reason="torchao is not installed: pip install 'mint-stream[quantised]'")
STORED = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}}}


def quantised_base(room: Path, kind: str) -> Path:
    """A tiny base as torchao stores it by way of transformers: the head in full, all other linear layers in int8."""
    from torchao.quantization import Int8WeightOnlyConfig  # where it is installed

    path = tiny_base(room / "plain", kind, hidden_size=64, intermediate_size=96)
    config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, quantization_config=config, local_files_only=True)
    model.save_pretrained(room / "int8")
    byte_tokenizer().save_pretrained(room / "int8")
    return room / "int8"


def stock(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", local_files_only=True).eval()


@needs_torchao
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_every_row_over_an_int8_base_has_the_logits_that_peft_gives_it_there(kind: str, tmp_path: Path) -> None:
    """One kind whose layers are fused, and one that stays stock."""
    path = quantised_base(tmp_path, kind)
    names = ("all-linear", "patterns", "one-layer")
    oracles = [_oracle(stock(path), CONFIGS[name], tmp_path / name, seed) for seed, name in enumerate(names)]
    _assert_parity(load_base(path, dtype=torch.float32), [*oracles, _oracle(stock(path), None, tmp_path, 0)], VOCABULARY)


@needs_torchao
def test_gradients_of_adapters_over_an_int8_base_are_pefts(tmp_path: Path) -> None:
    path = quantised_base(tmp_path, "llama")
    model = load_base(path, dtype=torch.float32).model
    paths = {path: shape for path, shape in linear_paths(model).items() if path != "lm_head"}
    mine, (tokens, others) = _job(paths, 1), ([token % VOCABULARY for token in _tokens(seed, 19)] for seed in (1, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers a deprecated question
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(paths))
        theirs = peft.get_peft_model(stock(path), config).train()
    state = theirs.state_dict()
    for name, lora in mine.items():
        state[f"base_model.model.{name}.lora_A.default.weight"].copy_(lora.A)
        state[f"base_model.model.{name}.lora_B.default.weight"].copy_(lora.Bt.t())
    _loss(theirs(input_ids=torch.tensor([tokens])).logits[0], tokens).backward()
    _train(PackedModel(model, linear_paths(model)), [(others, -1), (tokens, 0)], [mine])
    expected = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    assert len(expected) == 2 * len(paths)
    for name, lora in mine.items():
        for side, ours in (("A", lora.grad_A), ("B", lora.grad_Bt)):
            right = expected[f"base_model.model.{name}.lora_{side}.default.weight"]
            assert ours is not None
            assert ((ours if side == "A" else ours.t()) - right).norm() <= 1e-4 * max(1.0, float(right.norm())), (name, side)


@needs_torchao
def test_jobs_over_an_int8_base_are_trained_each_in_passes_of_its_own(tmp_path: Path) -> None:
    base = load_base(quantised_base(tmp_path, "llama"), dtype=torch.float32)
    assert exact_rows(base.packed, 512) == ALONE
    assert Trainer(base.packed).most_tokens == 2048


@pytest.mark.skipif(INSTALLED, reason="torchao is installed")
def test_without_its_library_an_int8_base_is_refused_by_the_name_of_the_extra() -> None:
    with pytest.raises(MissingExtra, match=r"mint-stream\[quantised\]"):
        check_quantised("Llama", AutoConfig.for_model("llama", quantization_config=STORED))


def test_what_rounds_the_inputs_too_is_refused_by_name() -> None:
    dynamic = {**STORED, "quant_type": {"default": {"_type": "Int8DynamicActivationInt8WeightConfig"}}}
    with pytest.raises(BaseUnusable, match=r"stored quantized by torchao \(Int8DynamicActivation.*Int8WeightOnlyConfig of torchao"):
        check_quantised("Llama", AutoConfig.for_model("llama", quantization_config=dynamic))
    check_quantised("Llama", AutoConfig.for_model("llama"))
