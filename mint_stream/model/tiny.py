"""Tiny random models of many architectures: the real code in milliseconds, for tests and for trying a cluster without weights."""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 300
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {"num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10,
           "head_dim": 8, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, **_MOE}  # fmt: skip
_SPARSE = {"index_n_heads": 16, "index_head_dim": 16, "index_topk": 6, "pad_token_id": None}
"""What a sparse layer looks at is free where scores tie: at 0, which few heads or a padding token's zero embedding lead to."""
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 8, "tie_word_embeddings": True}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "attention_bias": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "gemma2": {"model_type": "gemma2", "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, **_GEMMA},
    "gemma3": {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"], **_GEMMA},
    "mistral": {"model_type": "mistral", "head_dim": 16, "sliding_window": 8},
    "gpt_oss": {"model_type": "gpt_oss", "head_dim": 16, "sliding_window": 8, "num_local_experts": 2, "num_experts_per_tok": 2,
                "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "llama_tied": {"model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": True},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 4, "norm_topk_prob": True, **_MOE},
    "deepseek_v2": {"model_type": "deepseek_v2", **_LATENT, "q_lora_rank": None},
    "deepseek_v3": {"model_type": "deepseek_v3", **_LATENT},
    "deepseek_v32": {"model_type": "deepseek_v32", **_LATENT, **_SPARSE},
    "glm_moe_dsa": {"model_type": "glm_moe_dsa", **_LATENT, **_SPARSE, "indexer_types": ["full", "shared"]},
    "qwen3_next": {"model_type": "qwen3_next", "head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "num_experts": 4,
                   "shared_expert_intermediate_size": 40, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
                   "linear_num_key_heads": 2, "linear_num_value_heads": 4, **_MOE},
    "qwen2_moe": {"model_type": "qwen2_moe", "num_experts": 4, "shared_expert_intermediate_size": 40, **_MOE},
}  # fmt: skip
"""What each kind adds to the common shape. Windows are shorter than any test's prompt, so they matter."""


def tiny_model(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A transformers causal language model of this kind, float32 on the CPU, frozen, its weights drawn from `seed`."""
    options = _SHAPE | KINDS[kind] | changes
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name or "sinks" in name:
                nn.init.normal_(weight, mean=weight.mean().item(), std=0.1)
    return model.eval().requires_grad_(False)


def linear_paths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Every linear layer by module path, with (in, out)."""
    return {path: (m.in_features, m.out_features) for path, m in model.named_modules() if isinstance(m, nn.Linear)}
