"""Latents: the cache holds them compressed, and what runs over cached rows has its adapters there."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.kernels import Segments
from mint_stream.model.forward import PackedModel
from mint_stream.model.latent import chooses, latent_layers, visible
from mint_stream.model.lora_linear import LoraLinear
from mint_stream.model.passes import Pass, Span, pack
from mint_stream.model.tiny import linear_paths, tiny_model

SPANS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(-1, 2)), min_size=1, max_size=5)


def passed(spans: list[tuple[int, int, int]]) -> Pass:
    """A pass of spans (position, rows, adapter slot)."""
    made: list[Span] = []
    for slot, (position, rows, _) in enumerate(spans):
        begin = made[-1].end if made else 0
        made.append(Span(begin, begin + rows, position, slot))
    segments = Segments.of_slots([adapter for _, rows, adapter in spans for _ in range(rows)])
    return Pass((0,) * made[-1].end, tuple(made), (), segments)


@given(spans=SPANS)
def test_every_cached_row_has_the_adapter_of_its_sequence(spans: list[tuple[int, int, int]]) -> None:
    whole = [adapter for position, rows, adapter in spans for _ in range(position + rows)]
    assert passed(spans).cached_segments.slots() == whole
    assert passed(spans).cached_rows == len(whole)


@given(spans=SPANS)
def test_a_token_may_look_at_its_own_sequences_past_and_at_itself(spans: list[tuple[int, int, int]]) -> None:
    owners = [(owner, place) for owner, (position, rows, _) in enumerate(spans) for place in range(position + rows)]
    tokens = [(owner, place) for owner, (position, rows, _) in enumerate(spans) for place in range(position, position + rows)]
    expected = [[owner == theirs and where <= place for theirs, where in owners] for owner, place in tokens]
    assert visible(passed(spans), torch.device("cpu"))[0, 0].tolist() == expected


def test_whole_sequences_that_are_not_cached_have_one_row_space() -> None:
    packed = pack([([1, 2, 3], 0), ([4, 5], -1), ([6], 1)])
    assert packed.cached_segments == packed.segments


@pytest.mark.parametrize(
    ("kind", "layers", "choosing"), [("deepseek_v3", {0, 1}, False), ("deepseek_v32", {0, 1}, True), ("llama", set(), False)]
)
def test_a_model_says_which_layers_hold_latents_and_whether_they_choose(kind: str, layers: set[int], choosing: bool) -> None:
    model = tiny_model(kind)
    assert (latent_layers(model), chooses(model)) == (layers, choosing)


def test_of_the_linear_layers_only_those_that_expand_latents_read_the_cache() -> None:
    packed = PackedModel(tiny_model("deepseek_v3"), linear_paths(tiny_model("deepseek_v3")))
    reading = {module.path for module in packed.model.modules() if isinstance(module, LoraLinear) and module.reads_cache}
    assert reading == {f"model.layers.{layer}.self_attn.kv_b_proj" for layer in (0, 1)}
