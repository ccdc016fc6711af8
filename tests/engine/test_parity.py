"""A mixed batch computes for each row what PEFT computes for that row's adapter alone: float32, chunked prefill beside decode."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from mint_stream.adapter import AdapterBlock, AdapterWeights
from mint_stream.engine.batcher import Batcher, Budgets, Waiting
from mint_stream.engine.generation import Generation
from mint_stream.engine.runner import Runner
from mint_stream.engine.sequence import RunningSequence
from mint_stream.messages.inference import Sampling
from mint_stream.model.base import ResidentBase, load_base
from mint_stream.model.tiny import tiny_model
from tests.factories import VOCABULARY, tiny_base

CONFIGS: dict[str, dict[str, Any]] = {
    "all-linear": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    "rs-qv": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ["k_proj", "o_proj", "down_proj"],
        "rank_pattern": {"layers.0.mlp.down_proj": 2},
        "alpha_pattern": {"o_proj": 12},
    },
    "one-layer": {"r": 5, "lora_alpha": 10, "target_modules": ["up_proj"], "layers_to_transform": [1]},
    "with-head": {"r": 2, "lora_alpha": 8, "target_modules": ["gate_proj", "lm_head"]},
    "attention": {"r": 6, "lora_alpha": 9, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "head-and-o": {"r": 2, "lora_alpha": 8, "target_modules": ["o_proj", "lm_head"]},
    "second-o": {"r": 5, "lora_alpha": 10, "target_modules": ["o_proj"], "layers_to_transform": [1]},
    "all-of-a-mixture": {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"},  # PEFT: attention, routers and experts, these at 2 r
    "experts": {"r": 4, "lora_alpha": 6, "target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    "experts-down": {"r": 5, "lora_alpha": 5, "target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]},
    "router": {"r": 2, "lora_alpha": 2, "target_modules": [], "target_parameters": ["gate.weight"]},
    "latent": {"r": 4, "lora_alpha": 6, "target_modules": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]},
    "expanding": {"r": 3, "lora_alpha": 9, "target_modules": ["kv_b_proj"]},
    "indexer": {"r": 3, "lora_alpha": 3, "target_modules": ["wq_b", "wk", "weights_proj"]},
    "linear-attention": {"r": 4, "lora_alpha": 6, "target_modules": ["in_proj_qkvz", "in_proj_ba", "out_proj"]},
    "shared": {"r": 4, "lora_alpha": 8, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
}
DENSE = ("all-linear", "rs-qv", "patterns", "one-layer", "with-head")
TIED = DENSE[:-1]
"""Without the head: it shares its weight with the embedding, which PEFT warns about."""
MIXTURE = ("attention", "rs-qv", "second-o", "head-and-o", "all-of-a-mixture", "experts", "experts-down")
LATENT = ("latent", "expanding", "second-o", "head-and-o", "experts", "shared")
TABLE: dict[str, tuple[str, ...]] = {
    "llama": DENSE,  # grouped heads, biases
    "llama_tied": TIED,  # a key head a query head, no bias, tied head
    "qwen3": DENSE,
    "gemma2": TIED,
    "gemma3": TIED,
    "mistral": DENSE,  # sliding window
    "gpt_oss": MIXTURE,  # sinks
    "mixtral": (*MIXTURE, "router"),
    "qwen3_moe": (*MIXTURE, "router"),
    "deepseek_v2": LATENT[1:],  # MLA
    "deepseek_v3": LATENT,
    "deepseek_v32": (*LATENT, "indexer"),  # MLA that looks at a few chosen tokens (DSA)
    "glm_moe_dsa": (*LATENT, "indexer"),
    "qwen3_next": (*MIXTURE, "linear-attention", "shared"),  # a hybrid of linear and full attention
    "qwen2_moe": (*MIXTURE, "router", "shared"),  # a shared expert, gated
}
"""The kinds that are served, and the adapters each is held to PEFT with."""
ATOL = 1e-3


@dataclass(frozen=True)
class Oracle:
    """PEFT's own single-adapter model, and the same adapter as a block of ours."""

    logits: Callable[[list[int]], Tensor]
    block: AdapterBlock | None


def _quiet_peft(model: Any, config: dict[str, Any]) -> Any:
    if config is CONFIGS["shared"]:
        model.config.model_type = "plain"  # else PEFT takes shared experts' linears for the routed experts, and adapts those instead
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers a deprecated question
        return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config)).eval()


def _oracle(model: Any, config: dict[str, Any] | None, folder: Path, seed: int, scale: float = 0.2) -> Oracle:
    block = None
    if config is not None:
        model = _quiet_peft(model, config)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data.copy_(torch.randn(weight.shape, generator=generator) * scale)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(folder, save_embedding_layers=False)
        block = AdapterBlock.build(AdapterWeights.from_files({file.name: file.read_bytes() for file in folder.iterdir()}))

    def logits(tokens: list[int]) -> Tensor:
        with torch.no_grad():
            whole: Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
        return whole

    return Oracle(logits, block)


def _sequence(key: int, tokens: list[int], prompt: int, block: AdapterBlock | None) -> RunningSequence:
    generation = Generation(str(key), tuple(tokens[:prompt]), Sampling(max_tokens=len(tokens) - prompt + 1), seed=0, adapter=block)
    return RunningSequence(key, generation, lambda _: "", submitted_at_s=0.0)


def _forced(runner: Runner, budgets: Budgets, sequences: list[tuple[RunningSequence, list[int]]]) -> Iterator[tuple[int, int, Tensor]]:
    """Run to the end as an engine would, with the tokens given instead of drawn: (key, position, logits) of each sample."""
    batcher = Batcher(budgets)
    by_key = {sequence.key: (sequence, tokens) for sequence, tokens in sequences}
    for sequence, _ in sequences:
        adapter = None if sequence.generation.adapter is None else id(sequence.generation.adapter)
        batcher.add(Waiting(sequence.key, len(sequence.generation.prompt_tokens), adapter, "online", 0.0))
    while batcher.waiting or batcher.running:
        step = batcher.step(0.0)
        for key in step.admitted:
            by_key[key][0].slot = runner.cache.take().slot
        chosen, logits = runner.logits([(rows, by_key[rows.key][0]) for rows in step.rows])
        for sequence, row in zip([one.sequence for one in chosen], logits, strict=True):
            tokens = by_key[sequence.key][1]
            yield sequence.key, len(sequence.tokens) - 1, row
            if len(sequence.tokens) == len(tokens):
                batcher.remove(sequence.key)
                runner.cache.release(sequence.slot)
            else:
                sequence.tokens.append(tokens[len(sequence.tokens)])


def _assert_parity(base: ResidentBase, oracles: list[Oracle], vocabulary: int, rounds: int = 3) -> None:
    generator = torch.Generator().manual_seed(7)
    sequences, expected = [], {}
    for key in range(rounds * len(oracles)):
        oracle = oracles[key % len(oracles)]
        prompt, length = 1 + key * 5 % 23, 6 + key * 7 % 31
        tokens = torch.randint(0, vocabulary, (prompt + length,), generator=generator).tolist()
        sequences.append((_sequence(key, tokens, prompt, oracle.block), tokens))
        expected[key] = oracle.logits(tokens)
    runner = Runner(base, slots=7, slot_tokens=64)
    budgets = Budgets(max_num_seqs=7, max_num_batched_tokens=17, max_adapters=4)
    seen = 0
    for key, position, row in _forced(runner, budgets, sequences):
        torch.testing.assert_close(row, expected[key][position], atol=ATOL, rtol=0)
        seen += 1
    assert seen == sum(len(tokens) - len(sequence.generation.prompt_tokens) + 1 for sequence, tokens in sequences)
    assert runner.max_adapters_in_step >= 3 and runner.cache.free_slots == 7


@pytest.mark.parametrize("kind", TABLE)
def test_every_row_of_a_mixed_batch_has_its_adapters_own_logits(kind: str, tmp_path: Path) -> None:
    oracles = [
        _oracle(tiny_model(kind, vocab_size=VOCABULARY), CONFIGS[name], tmp_path / name, seed) for seed, name in enumerate(TABLE[kind])
    ]
    base_only = _oracle(tiny_model(kind, vocab_size=VOCABULARY), None, tmp_path, 0)
    tokens = list(range(20))
    assert all(float((oracle.logits(tokens) - base_only.logits(tokens)).abs().max()) > 30 * ATOL for oracle in oracles)
    _assert_parity(load_base(tiny_base(tmp_path / "base", kind), dtype=torch.float32), [*oracles, base_only], VOCABULARY)


def test_a_freed_slot_leaves_no_number_that_is_not_finite_behind(tmp_path: Path) -> None:
    oracle = _oracle(tiny_model("llama", vocab_size=VOCABULARY), CONFIGS["all-linear"], tmp_path / "adapter", 0)
    base_only = _oracle(tiny_model("llama", vocab_size=VOCABULARY), None, tmp_path, 0)
    assert oracle.block is not None
    broken = oracle.block
    for layer in broken.layers.values():
        layer.A.fill_(1e38)
    runner = Runner(load_base(tiny_base(tmp_path / "base"), dtype=torch.float32), slots=3, slot_tokens=64)
    budgets = Budgets(max_num_seqs=3, max_num_batched_tokens=17)
    tokens = [[(key + at) % VOCABULARY for at in range(40 - 8 * key)] for key in range(5)]
    sequences = [(_sequence(key, ids, 5, broken if key == 0 else None), ids) for key, ids in enumerate(tokens)]
    for key, position, row in _forced(runner, budgets, sequences):
        if key == 0:
            assert not bool(row.isfinite().all())
        else:
            torch.testing.assert_close(row, base_only.logits(tokens[key])[position], atol=ATOL, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "deepseek_v3", "deepseek_v32", "qwen3_next"])
def test_a_mix_gives_each_sequence_the_logits_it_has_alone(kind: str, tmp_path: Path) -> None:
    names = TABLE[kind][:3]
    oracles = [_oracle(tiny_model(kind, vocab_size=VOCABULARY), CONFIGS[name], tmp_path / name, 0) for name in names]
    blocks = [*(oracle.block for oracle in oracles), None]
    base = load_base(tiny_base(tmp_path / "base", kind), dtype=torch.float32)

    tokens = [[(11 * key + at) % 256 for at in range(12 + 3 * key)] for key in range(8)]

    def run(keys: Iterable[int], max_num_batched_tokens: int) -> dict[tuple[int, int], Tensor]:
        sequences = [(_sequence(key, tokens[key], 9, blocks[key % 4]), tokens[key]) for key in keys]
        budgets = Budgets(max_num_seqs=5, max_num_batched_tokens=max_num_batched_tokens)
        return {(key, at): row for key, at, row in _forced(Runner(base, slots=5, slot_tokens=64), budgets, sequences)}

    alone, mixed = {place: row for key in range(8) for place, row in run([key], 64).items()}, run(range(8), 13)
    assert alone.keys() == mixed.keys()
    for place, row in alone.items():
        torch.testing.assert_close(mixed[place], row, atol=ATOL, rtol=0)


BROKEN = {"qwen3_moe": "all-of-a-mixture", "deepseek_v3": "latent", "deepseek_v32": "latent", "qwen3_next": "linear-attention"}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_adapter_that_computes_nonsense_reaches_no_other_sequence(kind: str, tmp_path: Path) -> None:
    config = CONFIGS[BROKEN[kind]]
    broken, mine, base_only = (
        _oracle(tiny_model(kind, vocab_size=VOCABULARY), given, tmp_path / name, seed)
        for seed, (name, given) in enumerate({"broken": config, "mine": config, "base": None}.items())
    )
    assert broken.block is not None
    broken.block.flat.fill_(torch.nan)
    runner = Runner(load_base(tiny_base(tmp_path / "model", kind), dtype=torch.float32), slots=4, slot_tokens=64)
    owners = [broken, mine, base_only, mine, broken, base_only, mine]
    tokens = [[(7 * key + at) % 256 for at in range(24 - key)] for key in range(len(owners))]
    sequences = [(_sequence(key, ids, 5, owners[key].block), ids) for key, ids in enumerate(tokens)]
    for key, position, row in _forced(runner, Budgets(max_num_seqs=4, max_num_batched_tokens=17), sequences):
        if owners[key] is broken:
            assert not bool(row.isfinite().all())
        else:
            torch.testing.assert_close(row, owners[key].logits(tokens[key])[position], atol=ATOL, rtol=0)


@pytest.mark.model
@pytest.mark.long
@pytest.mark.timeout(300)
def test_on_smollm2_too_every_row_has_its_adapters_own_logits(smollm2_path: Path, tmp_path: Path) -> None:
    def stock() -> Any:
        return AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.float32, local_files_only=True).eval()

    names = ("all-linear", "rs-qv", "patterns")
    oracles = [_oracle(stock(), CONFIGS[name], tmp_path / name, seed, scale=0.02) for seed, name in enumerate(names)]
    _assert_parity(
        load_base(smollm2_path, dtype=torch.float32), [*oracles, _oracle(stock(), None, tmp_path, 0)], vocabulary=49_152, rounds=2
    )
