"""PEFT's files, both ways, with the real peft on the other side."""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mint_stream.adapter import AdapterWeights
from mint_stream.errors import InvalidAdapter
from mint_stream.messages.training import LoraSettings
from tests.factories import peft_files, peft_model

TOKENS = torch.tensor([[72, 101, 108, 108, 111, 32, 119, 111]])
SETTINGS: dict[str, dict[str, Any]] = {
    "all-linear": {},
    "two modules": {"target_modules": ["q_proj", "v_proj"]},
    "a regular expression": {"target_modules": r".*\.1\.mlp\.(up|down)_proj"},
    "exact paths": {"target_modules": ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.k_proj"]},
    "the head": {"target_modules": ["lm_head", "o_proj"]},
    "all but some": {"exclude_modules": ["q_proj", "model.layers.0.mlp.up_proj"]},
    "all but a regular expression": {"exclude_modules": r".*mlp.*"},
    "one layer": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1},
    "layers by pattern": {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["layers"]},
    "rsLoRA": {"use_rslora": True, "r": 3, "lora_alpha": 5},
    "ranks by end": {"rank_pattern": {"q_proj": 2, "mlp.up_proj": 7}},
    "ranks by expression": {"rank_pattern": {r".*layers\.1\..*_proj": 6, r"^model.layers.0.mlp.(up|gate)_proj": 1}},
    "overlapping ranks": {"rank_pattern": {"layers.0.self_attn.q_proj": 3, r"layers\.\d\.self_attn\.q_proj": 6, "q_proj": 5}},
    "alphas": {"alpha_pattern": {"down_proj": 64, r"layers.0.mlp.up_proj": 1}},
    "half a name matches nothing": {"alpha_pattern": {"_proj": 64, "proj": 3}},
    "everything at once": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 5},
        "alpha_pattern": {"q_proj": 3, "v_proj": 9},
        "use_rslora": True,
        "lora_dropout": 0.1,
    },
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def with_peft(base: Path, files: dict[str, bytes]) -> Any:
    """What peft makes of the files."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager", local_files_only=True)
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        for name, content in files.items():
            (Path(directory) / name).write_bytes(content)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "The following alpha_pattern keys did not match", RuntimeWarning)
        warnings.filterwarnings("error", "Found missing adapter keys")
        return PeftModel.from_pretrained(model, directory).eval()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_every_layer_has_the_rank_scaling_and_numbers_that_peft_gives_it(base: Path, settings: dict[str, Any]) -> None:
    files = peft_files(base, **settings)
    weights = AdapterWeights.from_files(files)
    theirs = {
        name.removeprefix("base_model.model."): module
        for name, module in with_peft(base, files).named_modules()
        if getattr(module, "lora_A", None) is not None and len(module.lora_A)
    }
    assert weights.layers.keys() == theirs.keys()
    for path, module in theirs.items():
        layer = weights.layers[path]
        assert layer.scaling == module.scaling["default"], path
        assert torch.equal(layer.A, module.lora_A["default"].weight)
        assert torch.equal(layer.B, module.lora_B["default"].weight)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_peft_answers_the_same_from_the_files_we_write(base: Path, settings: dict[str, Any]) -> None:
    theirs = peft_model(base, **settings)
    ours = with_peft(base, AdapterWeights.from_files(peft_files(base, **settings)).to_peft())
    assert torch.equal(logits(ours), logits(theirs))
    assert not torch.equal(logits(ours), logits(theirs.unload()))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_writing_and_reading_changes_neither_digest_nor_bytes(base: Path, settings: dict[str, Any]) -> None:
    once = AdapterWeights.from_files(peft_files(base, **settings))
    twice = AdapterWeights.from_files(once.to_peft())
    assert twice.digest == once.digest
    assert twice.to_peft() == once.to_peft()


def test_ranks_that_peft_itself_loses_by_sorting_its_patterns_are_refused(base: Path) -> None:
    files = peft_files(base, rank_pattern={"q_proj": 5, r"layers\.\d\.self_attn\.q_proj": 6})
    with pytest.raises(InvalidAdapter, match=r"are not \[6, in\]"):
        AdapterWeights.from_files(files)


def test_peft_starts_a_fresh_adapter_exactly_as_the_base(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager", local_files_only=True)
    linears = {name: (part.in_features, part.out_features) for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    fresh = AdapterWeights.fresh(LoraSettings(rank=3, rank_pattern={"q_proj": 2}), linears, seed=7)
    adapted = with_peft(base, fresh.to_peft())
    assert torch.equal(logits(adapted), logits(model))


@pytest.mark.parametrize(
    "settings", [{}, {"target_modules": ["q_proj"]}, {"target_modules": ["lm_head", "q_proj"]}, {"rank_pattern": {"up_proj": 2}}]
)
def test_a_fresh_adapter_has_the_layers_peft_would_train(base: Path, settings: dict[str, Any]) -> None:
    model = peft_model(base, **settings)
    linears = {
        name.removeprefix("base_model.model.").removesuffix(".base_layer"): (part.in_features, part.out_features)
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and "lora_" not in name
    }
    lora = LoraSettings(rank=4, alpha=8, **settings)
    assert AdapterWeights.fresh(lora, linears, seed=0).targets() == AdapterWeights.from_files(peft_files(base, **settings)).targets()


def test_the_order_and_wording_of_peft_settings_do_not_change_the_digest(base: Path) -> None:
    files = peft_files(base, target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 2})
    config = json.loads(files["adapter_config.json"])
    digest = AdapterWeights.from_files(files).digest
    for change in (
        {"target_modules": ["v_proj", "q_proj"]},
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": ["self_attn.q_proj", "v_proj"], "rank_pattern": {r"self_attn\.q_proj": 2}},
        {"r": 2, "rank_pattern": {"v_proj": 4}, "alpha_pattern": {"q_proj": 8}},
        {"base_model_name_or_path": "elsewhere", "lora_dropout": 0.5, "peft_version": "9", "task_type": None},
    ):
        assert AdapterWeights.from_files(files | {"adapter_config.json": json.dumps(config | change).encode()}).digest == digest, change


def test_whatever_changes_the_answers_changes_the_digest(base: Path) -> None:
    digests = [
        AdapterWeights.from_files(peft_files(base, **settings)).digest
        for settings in ({}, {"lora_alpha": 9}, {"use_rslora": True}, {"seed": 1})
    ]
    assert len(set(digests)) == 4


def test_half_precision_files_mean_the_same_as_their_exact_widening(base: Path) -> None:
    files = peft_files(base)
    narrow = {name: tensor.bfloat16() for name, tensor in safetensors.torch.load(files["adapter_model.safetensors"]).items()}
    wide = {name: tensor.float() for name, tensor in narrow.items()}
    one, other = ({**files, "adapter_model.safetensors": safetensors.torch.save(tensors)} for tensors in (narrow, wide))
    assert AdapterWeights.from_files(one).digest == AdapterWeights.from_files(other).digest


REFUSED = {
    "DoRA": {"use_dora": True},
    "a bias": {"bias": "all"},
    "lora_only": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "single tokens": {"trainable_token_indices": [1, 2]},
    "bare parameters": {"target_parameters": ["experts.gate_up_proj"]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 3]]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1]},
    "use_qalora": {"use_qalora": True},
    "something_new": {"something_new": {"on": True}},
    "LOHA": {"peft_type": "LOHA"},
    "PREFIX_TUNING": {"peft_type": "PREFIX_TUNING"},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "loftq": {"init_lora_weights": "loftq"},
    "too complex": {"target_modules": "(a+)+$"},
    "not a regular expression": {"rank_pattern": {"(": 3}},
    "does not select it": {"target_modules": ["k_proj"]},
    "are not \\[5, in\\]": {"r": 5},
    r"r: Input should be greater": {"r": 0},
    r"lora_alpha: Input": {"lora_alpha": "much"},
    r"lora_alpha: .*finite": {"lora_alpha": float("inf")},
}


@pytest.mark.parametrize(("name", "change"), REFUSED.items(), ids=REFUSED.keys())
def test_what_we_do_not_compute_is_refused_by_name(base: Path, name: str, change: dict[str, Any]) -> None:
    files = peft_files(base, target_modules=["q_proj"])
    config = json.loads(files["adapter_config.json"]) | change
    with pytest.raises(InvalidAdapter, match=name):
        AdapterWeights.from_files(files | {"adapter_config.json": json.dumps(config).encode()})


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"peft_type": "LORA"}'])
def test_a_malformed_config_is_refused(base: Path, config: bytes) -> None:
    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json"):
        AdapterWeights.from_files(peft_files(base) | {"adapter_config.json": config})


A_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B_KEY = A_KEY.replace("lora_A", "lora_B")
TENSORS: dict[str, dict[str, torch.Tensor | None]] = {
    "DoRA": {A_KEY.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(48)},
    "LoRA on an embedding": {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 9)},
    "a bias": {"base_model.model.model.layers.0.self_attn.q_proj.bias": torch.ones(48)},
    "lora_bias": {B_KEY.replace("weight", "bias"): torch.ones(48)},
    "a copy of a base layer": {"base_model.model.lm_head.base_layer.weight": torch.ones(9, 48)},
    "a full weight": {"base_model.model.lm_head.weight": torch.ones(9, 48)},
    "this tensor": {"surprise": torch.ones(1)},
    "other half": {B_KEY: None},
    "are not": {A_KEY: torch.ones(5, 48)},
    r"\[out, 4\]": {B_KEY: torch.ones(4, 48, 1)},
    "not finite": {A_KEY: torch.full((4, 48), float("nan"))},
    "numbers that are not finite": {B_KEY: torch.full((48, 4), float("inf"))},
    "floating point": {A_KEY: torch.ones(4, 48, dtype=torch.int32)},
}


@pytest.mark.parametrize(("name", "change"), TENSORS.items(), ids=TENSORS.keys())
def test_a_tensor_we_do_not_compute_is_refused_by_name(base: Path, name: str, change: dict[str, torch.Tensor | None]) -> None:
    files = peft_files(base, target_modules=["q_proj", "lm_head"])
    tensors = safetensors.torch.load(files["adapter_model.safetensors"]) | change
    whole = safetensors.torch.save({key: tensor for key, tensor in tensors.items() if tensor is not None})
    with pytest.raises(InvalidAdapter, match=name):
        AdapterWeights.from_files(files | {"adapter_model.safetensors": whole})


def test_a_pickle_is_refused_under_any_name(base: Path, tmp_path: Path) -> None:
    files = peft_files(base)
    torch.save({"a": torch.ones(1)}, tmp_path / "x.bin")
    pickled = (tmp_path / "x.bin").read_bytes()
    with pytest.raises(InvalidAdapter, match="pickle"):
        AdapterWeights.from_files(files | {"adapter_model.safetensors": pickled})
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.bin is a pickle"):
        AdapterWeights.from_files({"adapter_config.json": files["adapter_config.json"], "adapter_model.bin": pickled})


@pytest.mark.parametrize("cut", [0, 4, 7, 100, -1])
def test_a_damaged_tensor_file_is_refused(base: Path, cut: int) -> None:
    files = peft_files(base)
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.safetensors"):
        AdapterWeights.from_files(files | {"adapter_model.safetensors": files["adapter_model.safetensors"][:cut]})


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(base: Path, name: str) -> None:
    files = peft_files(base)
    del files[name]
    with pytest.raises(InvalidAdapter, match=name.replace(".", r"\.")):
        AdapterWeights.from_files(files)
