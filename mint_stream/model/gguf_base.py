"""A llama-architecture GGUF file as a transformers directory: safetensors, config and tokenizer. Needs gguf and numpy, not torch."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mint_stream.errors import BaseUnusable, MissingExtra

try:
    import gguf as _gguf
except ImportError:
    _gguf = None

gguf: ModuleType | None = _gguf
CONTROL_TOKEN = 3
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def convert(source: Path, target: Path, report: Callable[[str], None]) -> None:
    """Write the model in the GGUF file `source` into the existing directory `target`, in float32. Raises MissingExtra or BaseUnusable."""
    if gguf is None:
        raise MissingExtra("converting the built-in base needs the package gguf: pip install 'mint-stream[local]'")
    reader = gguf.GGUFReader(source)
    settings = {name: field.contents() for name, field in reader.fields.items()}
    if settings["general.architecture"] != "llama":
        raise BaseUnusable(f"{source.name} has architecture {settings['general.architecture']!r}; only llama can be converted")
    heads = {"attn_q": settings["llama.attention.head_count"], "attn_k": settings["llama.attention.head_count_kv"]}
    report(f"converting {len(reader.tensors)} tensors")
    tensors = dict(_converted(tensor, heads, gguf) for tensor in reader.tensors)
    safetensors.numpy.save_file(dict(sorted(tensors.items())), target / "model.safetensors", metadata={"format": "pt"})
    _write(target / "config.json", _config(settings, tied="lm_head.weight" not in tensors))
    _write(target / "generation_config.json", _special_ids(settings))
    report("writing the tokenizer")
    _tokenizer(settings).save(str(target / "tokenizer.json"))
    _write(target / "tokenizer_config.json", _tokenizer_config(settings))


def _converted(tensor: Any, heads: dict[str, int], gguf: ModuleType) -> tuple[str, NDArray[np.float32]]:
    weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    kind = tensor.name.split(".")[-2]
    if kind in heads:
        weight = _unpermuted(weight, heads[kind])
    return _name(tensor.name), np.ascontiguousarray(weight)


def _unpermuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """GGUF interleaves the two halves of each rotary head; transformers keeps them apart. [out, in]."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"
    if parts[0] in _NAMES:
        return f"{_NAMES[parts[0]]}.{parts[1]}"
    raise BaseUnusable(f"the GGUF file holds a tensor {name} that a llama model does not have")


def _config(settings: dict[str, Any], tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": settings["llama.embedding_length"],
        "intermediate_size": settings["llama.feed_forward_length"],
        "num_hidden_layers": settings["llama.block_count"],
        "num_attention_heads": settings["llama.attention.head_count"],
        "num_key_value_heads": settings["llama.attention.head_count_kv"],
        "head_dim": settings["llama.rope.dimension_count"],
        "max_position_embeddings": settings["llama.context_length"],
        "rms_norm_eps": settings["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": settings["llama.rope.freq_base"]},
        "vocab_size": settings["llama.vocab_size"],
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        **_special_ids(settings),
    }


def _special_ids(settings: dict[str, Any]) -> dict[str, int]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {name: settings[f"tokenizer.ggml.{key}_token_id"] for name, key in names.items()}


def _tokenizer(settings: dict[str, Any]) -> Any:
    """Byte-level BPE; every digit is a token of its own."""
    tokens = settings["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in settings["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, settings["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == CONTROL_TOKEN])
    return tokenizer


def _tokenizer_config(settings: dict[str, Any]) -> dict[str, Any]:
    tokens = settings["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": settings["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": settings["tokenizer.chat_template"],
        **{name: tokens[settings[f"tokenizer.ggml.{key}_token_id"]] for name, key in names.items()},
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
