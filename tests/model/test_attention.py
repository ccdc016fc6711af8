"""Packed attention computes what each stock model computes alone."""

import pytest
import torch

from mint_stream.errors import BaseUnusable
from mint_stream.model.attention import mint_attention, mint_mask
from mint_stream.model.forward import PackedModel
from mint_stream.model.passes import pack
from mint_stream.model.tiny import KINDS, VOCABULARY, linear_paths, tiny_model


def _tokens(length: int) -> list[int]:
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_get_the_logits_they_get_alone(kind: str) -> None:
    model = tiny_model(kind)
    sequences = [_tokens(length) for length in (20, 5, 1, 33)]
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([tokens])).logits[0] for tokens in sequences])
    packed = PackedModel(model, linear_paths(model)).forward(pack([(tokens, -1) for tokens in sequences]))
    assert float(alone.abs().max()) > 1
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=0)


def test_only_selected_rows_reach_the_head() -> None:
    model = PackedModel(tiny_model("llama"), {})
    sequences = [(_tokens(4), -1), (_tokens(6), -1)]
    torch.testing.assert_close(model.forward(pack(sequences, selected=[3, 9])), model.forward(pack(sequences))[[3, 9]])


def test_an_unknown_keyword_is_refused_by_name() -> None:
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(BaseUnusable, match="indices"):
        mint_attention(torch.nn.Identity(), q, q, q, None, mint_pass=pack([([1, 2, 3], -1)]), indices=torch.zeros(1))
    with pytest.raises(BaseUnusable, match="position_bias"):
        mint_attention(torch.nn.Identity(), q, q, q, None, mint_pass=pack([([1, 2, 3], -1)]), position_bias=torch.zeros(1))


def test_a_chunked_mask_is_refused() -> None:
    with pytest.raises(BaseUnusable, match="chunked"):
        mint_mask(mask_function=lambda b, h, q, kv: (q // 4 == kv // 4) & (kv <= q), local_size=4)
    with pytest.raises(BaseUnusable, match="causal"):
        mint_mask(mask_function=lambda b, h, q, kv: torch.tensor(True))


def test_a_model_called_without_a_pass_says_how_to_call_it() -> None:
    packed = PackedModel(tiny_model("llama"), {})
    with pytest.raises(ValueError, match="pass in progress"):
        packed.model(input_ids=torch.tensor([[1, 2]]))
