"""A resident base is what its directory says, or is refused by name."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from mint_stream.adapter import BlockForm
from mint_stream.errors import BaseUnusable
from mint_stream.kernels.native_library import kernels
from mint_stream.model.base import base_digest, check_servable, load_base, native_dtype
from mint_stream.model.tiny import KINDS, tiny_model
from tests.factories import VOCABULARY, tiny_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "tiny")


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_knows_its_layers_and_limits(tmp_path: Path, kind: str) -> None:
    loaded = load_base(tiny_base(tmp_path / kind, kind), torch.float32)
    stock = tiny_model(kind, vocab_size=VOCABULARY)
    assert loaded.linears == {name: (m.in_features, m.out_features) for name, m in stock.named_modules() if type(m) is torch.nn.Linear}
    assert loaded.linears["model.layers.1.self_attn.o_proj"][1] == 48
    assert loaded.output_head == "lm_head"
    assert loaded.linears["lm_head"] == (48, VOCABULARY)
    assert (loaded.context_tokens, loaded.vocabulary_tokens, loaded.eos_tokens) == (256, VOCABULARY, {257})
    assert sum(target.count for target in loaded.targets()) == sum(max(shape[2:], default=1) for shape in loaded.layers.values())
    assert loaded.architecture.endswith("ForCausalLM")
    assert loaded.digest == base_digest(tmp_path / kind)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == "mint"


def test_the_default_dtype_is_what_the_device_is_fast_at(base: Path) -> None:
    assert load_base(base).dtype == native_dtype(torch.device("cpu"))
    assert load_base(base, torch.bfloat16).dtype == torch.bfloat16


def test_the_tokenizer_comes_with_it(base: Path) -> None:
    tokenizer = load_base(base).tokenizer
    assert tokenizer.decode(tokenizer.encode("grüß dich")) == "grüß dich"
    assert "assistant" in tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_the_digest_covers_weights_config_and_tokenizer(base: Path, name: str) -> None:
    before = base_digest(base)
    content = (base / name).read_bytes()
    (base / name).write_bytes(
        content.replace(b'"hidden_act": "silu"', b'"hidden_act": "gelu"') if name == "config.json" else content[:-1] + b" "
    )
    assert base_digest(base) != before
    (base / name).write_bytes(content)
    assert base_digest(base) == before


def test_the_digest_ignores_which_library_wrote_the_config(base: Path) -> None:
    before = base_digest(base)
    config = json.loads((base / "config.json").read_bytes())
    (base / "config.json").write_text(json.dumps(config | {"transformers_version": "99", "_name_or_path": "x"}, indent=7))
    assert base_digest(base) == before


def test_the_same_base_elsewhere_has_the_same_digest(base: Path, tmp_path: Path) -> None:
    assert base_digest(tiny_base(tmp_path / "other")) == base_digest(base)
    assert base_digest(tiny_base(tmp_path / "third", seed=1)) != base_digest(base)


def test_the_digest_is_remembered_until_a_file_is_touched(base: Path) -> None:
    before = base_digest(base)
    weights = base / "model.safetensors"
    stat = weights.stat()
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\0")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert base_digest(base) == before
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert base_digest(base) != before


@pytest.mark.parametrize("memory", [b"", b"[]", b"{", b'{"stamp": "x", "digest": "y"}'])
def test_a_damaged_memory_of_the_digest_is_ignored(base: Path, memory: bytes) -> None:
    before = base_digest(base)
    (base.parent / ".tiny.digest.json").write_bytes(memory)
    assert base_digest(base) == before


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("config.json", "not a model directory"), ("model.safetensors", "not a model directory"), ("tokenizer.json", "cannot be loaded")],
)
def test_an_incomplete_directory_is_refused(base: Path, missing: str, reason: str) -> None:
    (base / missing).unlink()
    (base / "pytorch_model.bin").write_bytes(b"a pickle would be here")
    with pytest.raises(BaseUnusable, match=reason):
        load_base(base)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_directory_is_refused(base: Path, name: str) -> None:
    (base / name).write_bytes((base / name).read_bytes()[:50])
    with pytest.raises(BaseUnusable, match=r"tiny"):
        load_base(base)


@pytest.mark.parametrize("damage", ["gone", "of another shape"])
def test_weights_that_lack_a_tensor_are_refused_and_not_made_up(base: Path, damage: str) -> None:
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    whole = tensors.pop(name)
    save_file(tensors if damage == "gone" else tensors | {name: whole[:-1].clone()}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseUnusable, match=r"up_proj"):
        load_base(base)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("qwen3", {}, None),
        ("t5", {}, "not a causal language model"),
        ("bloom", {}, "attention registry"),
        ("recurrent_gemma", {}, "linear_attention layers"),
        ("llama4_text", {}, "chunked_attention"),
        ("qwen3_next", {}, None),
        ("qwen3_next", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic rotary"),
        ("mamba2", {}, "attention registry"),
        ("jamba", {}, "attention registry"),
        ("kimi_linear", {}, "attention registry"),
        ("zaya", {}, "layers, which are not supported|keeps a recurrent state"),
        ("lfm2", {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}, "conv layers"),
        ("granitemoehybrid", {}, "linear_attention layers"),
        ("minimax", {}, "linear_attention layers"),
        ("deepseek_v3", {}, None),
        ("deepseek_v32", {}, None),
        ("glm_moe_dsa", {}, None),
        ("axk2", {}, "indexed_attention layers"),
        ("mistral_large4", {}, "not a causal language model"),
        ("deepseek_v4", {}, "layers, which are not supported|attention registry"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic rotary"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "stored quantized"),
        ("llama", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "stored quantized"),
        ("mixtral", {"quantization_config": {"quant_method": "torchao"}}, "stored quantized"),
        ("llama", {"quantization_config": {"quant_method": "torchao", "quant_type": "int4_weight_only"}}, "int4_weight_only"),
        (
            "llama",
            {
                "quantization_config": {
                    "quant_method": "torchao",
                    "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}, "lm_head": {"_type": "Int4WeightOnlyConfig"}},
                }
            },
            "Int4WeightOnlyConfig",
        ),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, None),
    ],
)
def test_architectures_are_served_or_refused_by_name(kind: str, settings: dict[str, Any], reason: str | None) -> None:
    config = AutoConfig.for_model(kind, **settings)
    if reason is None:
        check_servable(config)
        return
    with pytest.raises(BaseUnusable, match=reason):
        check_servable(config)


def test_adapters_are_kept_as_the_base_is_where_a_kernel_reads_them(tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "tiny"), torch.bfloat16)
    assert base.adapter_dtype == (torch.float32 if kernels() is None else torch.bfloat16)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda:0", True)])
def test_adapters_are_held_page_locked_for_a_gpu_and_for_no_cpu_beside_one(device: str, pinned: bool, tmp_path: Path) -> None:
    base = replace(load_base(tiny_base(tmp_path / "base"), dtype=torch.float32), device=torch.device(device))
    assert base.block_form == BlockForm(base.adapter_dtype, pinned)
