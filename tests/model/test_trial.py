"""A base that packed passes would answer for wrongly does not come up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mint_stream.engine.kv_cache import SlottedCache
from mint_stream.engine.runner import Runner
from mint_stream.errors import BaseUnusable
from mint_stream.kernels import Segments
from mint_stream.model.base import check_servable, describe
from mint_stream.model.forward import PackedModel
from mint_stream.model.passes import Pass, Span
from mint_stream.model.tiny import KINDS, linear_paths, tiny_model
from mint_stream.model.trial import check_packing
from tests.factories import byte_tokenizer

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "topk_group": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def cache() -> SlottedCache:
    return SlottedCache(2, 32, torch.float32, torch.device("cpu"))


def other(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SHAPE | settings))
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_served_passes(kind: str) -> None:
    model = tiny_model(kind)
    packed = PackedModel(model, linear_paths(model))
    check_packing(packed, cache())
    assert model.config._attn_implementation == "mint"


@pytest.mark.parametrize("kind", ["glm4_moe", "granitemoe", "cohere2", "minicpm3", "youtu", "olmo3", "gpt_neox", "gpt2"])
def test_kinds_that_nobody_wrote_a_line_for_pass_too(kind: str) -> None:
    latent = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10, "head_dim": 8}
    experts = {"n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1}
    model = other(kind, **(latent if kind in ("minicpm3", "youtu") else {}), **experts)
    check_packing(PackedModel(model, linear_paths(model)), cache())


def test_a_kind_that_attends_in_a_way_of_its_own_is_refused_with_its_name_and_by_how_much_it_is_off() -> None:
    model = other("diffllama")
    with pytest.raises(BaseUnusable, match=r"DiffLlamaForCausalLM answers otherwise in packed passes, by \d"):
        check_packing(PackedModel(model, {}), cache())


def test_the_engine_does_not_warm_up_on_a_base_that_fails() -> None:
    base = describe(other("diffllama"), byte_tokenizer(), Path("nowhere"), "d" * 64)
    with pytest.raises(BaseUnusable, match="DiffLlamaForCausalLM answers otherwise"):
        Runner(base, slots=2, slot_tokens=32).warm_up()


def test_a_kind_that_fails_in_packed_passes_is_refused_with_its_name() -> None:
    model = other("nemotron")
    with pytest.raises(BaseUnusable, match="NemotronForCausalLM cannot be computed in packed passes"):
        check_packing(PackedModel(model, {}), cache())


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("gemma3n_text", {"num_kv_shared_layers": 1}, "share keys and values"),
        ("diffllama", {}, "attends in a way of its own"),
        ("jetmoe", {}, "attends in a way of its own"),
        ("hrm_text", {}, "attends in a way of its own"),
    ],
)
def test_those_known_to_fail_are_refused_before_their_weights_are_read(kind: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(BaseUnusable, match=reason):
        check_servable(AutoConfig.for_model(kind, **settings))


@pytest.mark.parametrize("kind", ["minimax_m2", "hy_v3"])
def test_a_router_that_is_told_more_than_its_rows_is_no_target(kind: str) -> None:
    model = other(kind, num_local_experts=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=16)
    packed = PackedModel(model, linear_paths(model))
    check_packing(packed, cache())


@pytest.mark.parametrize(
    ("kind", "known"), [("llama", 11), ("qwen3_moe", 11), ("deepseek_v3", 11), ("deepseek_v32", 11), ("qwen3_next", 0)]
)
def test_a_beginning_that_is_known_is_reused_whole_or_where_a_layer_keeps_a_state_not_at_all(kind: str, known: int) -> None:
    packed = PackedModel(tiny_model(kind), linear_paths(tiny_model(kind)))
    slots, tokens = cache(), list(range(3, 15))
    rows = []
    for _ in range(2):
        found = slots.take("maker", tokens)
        span = Span(0, len(tokens) - found.tokens, found.tokens, found.slot)
        pass_ = Pass(tuple(tokens[found.tokens :]), (span,), (span.rows - 1,), Segments((), span.rows))
        slots.place(pass_)
        rows.append(packed.forward(pass_, slots))
        slots.advance(found.slot, len(tokens))
        slots.release(found.slot, keep=True)
    assert found.tokens == known
    torch.testing.assert_close(rows[1], rows[0], atol=1e-4, rtol=0)
