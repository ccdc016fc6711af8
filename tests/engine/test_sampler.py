"""Drawing tokens: the settings mean what they say, and a row's draw is its own."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint_stream.engine.sampler import CANDIDATES, Draw, choose, uniform
from mint_stream.messages.inference import Sampling


def _logits(rows: int, vocabulary: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def _allowed(logits: Tensor, sampling: Sampling) -> set[int]:
    """The plain definition: temperature, then top-k, then top-p over what is left."""
    order = logits.sort(descending=True, stable=True)
    kept = len(order.values) if sampling.top_k == 0 else min(sampling.top_k, len(order.values))
    probabilities = (order.values[:kept].double() / sampling.temperature).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    return {int(token) for token, at in zip(order.indices[:kept], before, strict=True) if at < sampling.top_p + 1e-9}


drawing = st.builds(
    Sampling,
    temperature=st.floats(0.1, 3.0),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 17, 1500, 10_000]),
)


@settings(deadline=None)
@given(drawing, st.integers(0, 2**63 - 1), st.sampled_from([40, CANDIDATES + 900]))
def test_a_draw_is_always_among_the_tokens_its_settings_allow(sampling: Sampling, seed: int, vocabulary: int) -> None:
    logits = _logits(1, vocabulary, seed % 97) * 0.1
    (token,) = choose(logits, [Draw(sampling, seed, 5)])
    assert token in _allowed(logits[0], sampling)


@settings(deadline=None)
@given(st.lists(st.tuples(st.one_of(st.just(Sampling()), drawing), st.integers(0, 2**40)), min_size=1, max_size=6))
def test_a_draw_does_not_depend_on_its_neighbours(rows: list[tuple[Sampling, int]]) -> None:
    logits = _logits(len(rows))
    draws = [Draw(sampling, seed, 3) for sampling, seed in rows]
    together = choose(logits, draws)
    assert together == [choose(logits[row : row + 1], [draw])[0] for row, draw in enumerate(draws)]


@pytest.mark.parametrize("sampling", [Sampling(temperature=2.0, top_p=0.6), Sampling(temperature=2.0, top_k=4), Sampling(temperature=1.0)])
def test_every_allowed_token_is_drawn_some_time(sampling: Sampling) -> None:
    logits = _logits(1, 8) * 0.3
    drawn = choose(logits.expand(2000, -1), [Draw(sampling, 7, position) for position in range(2000)])
    assert set(drawn) == _allowed(logits[0], sampling)


def test_a_nucleus_wider_than_the_candidates_is_found_whole() -> None:
    logits = torch.zeros(1, CANDIDATES + 1000)
    drawn = choose(logits.expand(200, -1), [Draw(Sampling(temperature=1.0, top_p=0.9), 7, position) for position in range(200)])
    beyond = sum(token is not None and token >= CANDIDATES for token in drawn)
    assert 40 < beyond < 140


def test_temperature_zero_is_the_most_probable_token() -> None:
    logits = _logits(5)
    assert choose(logits, [Draw(Sampling(), row, 0) for row in range(5)]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("vocabulary", [6, CANDIDATES + 500])
def test_draws_follow_the_distribution(vocabulary: int) -> None:
    logits = _logits(1, vocabulary) * (1 if vocabulary < 10 else 0.02)
    expected = logits[0].softmax(-1)
    n = 4000
    drawn = Counter(choose(logits.expand(n, -1), [Draw(Sampling(temperature=1.0), 7, position) for position in range(n)]))
    half = set(expected.argsort()[: vocabulary // 2].tolist())
    low = sum(count for token, count in drawn.items() if token in half) / n
    assert abs(low - float(expected[list(half)].sum())) < 0.03


def test_the_numbers_are_uniform_and_a_function_of_seed_and_position() -> None:
    numbers = torch.tensor([uniform(3, position) for position in range(20_000)], dtype=torch.float64)
    assert abs(float(numbers.mean()) - 0.5) < 0.01 and abs(float(numbers.var()) - 1 / 12) < 0.005
    assert uniform(3, 4) == uniform(3, 4) != uniform(4, 3)


def test_a_row_that_is_not_finite_gets_no_token_and_its_neighbours_do() -> None:
    logits = _logits(3)
    logits[1, 7] = torch.nan
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        tokens = choose(logits, [Draw(sampling, 0, 0)] * 3)
        assert tokens[1] is None and None not in (tokens[0], tokens[2])
