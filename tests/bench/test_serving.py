"""The serving benchmark runs, says where, and refuses wrong results."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from mint_stream.app.measure import spread
from mint_stream.bench import serving
from mint_stream.bench.workload import peft_model
from mint_stream.kernels import Segments, SliceWeights, cpu
from mint_stream.model.base import load_base
from tests.factories import tiny_base


def test_it_reports_rates_ratios_machine_and_versions(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    load = serving.Load(adapters=2, requests=3, prompt_tokens=5, new_tokens=4, rank=2, repeats=2)
    report = serving.run(base, load, profile=True)
    others = ("base_only", "peft", "transformers", "linear_limit")
    assert {"ours", *others} == set(report["tokens_per_s"])
    parts = dict(report["decode_step"])
    assert parts.pop("whole") == pytest.approx(sum(parts.values())) and parts["adapters"] > 0 and parts["base linears"] > 0
    for side in others:
        expected = report["tokens_per_s"]["ours"]["median"] / report["tokens_per_s"][side]["median"]
        assert report["ratios"][f"vs_{side}"] == pytest.approx(expected)
    assert report["machine"]["cores"] >= 1 and report["versions"]["torch"] == torch.__version__.split("+")[0]


def test_tokens_of_the_bare_base_in_an_adapters_name_are_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    adapter = serving.random_adapter(load_base(base, dtype=torch.float32), rank=8, seed=0)
    work = serving.Workload(((5, 6, 7),), 16, (adapter,))
    tokens = plain.generate(input_ids=torch.tensor(work.prompts), max_new_tokens=16, min_new_tokens=16, do_sample=False)[0, 3:].tolist()
    with pytest.raises(serving.WrongResult, match="PEFT alone draws"):
        serving.check(plain, work, [tokens])


def test_tokens_that_are_the_highest_but_for_rounding_are_right_where_numbers_have_few_bits(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    for dtype in (torch.float32, torch.bfloat16):
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
        adapter = serving.random_adapter(load_base(base, dtype=dtype), rank=8, seed=0)
        with peft_model(plain, [adapter]) as adapted, torch.inference_mode():
            logits = adapted(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].float()
        order = logits.sort(descending=True)
        near = int(order.indices[(order.values[0] - order.values < 0.5).sum() - 1])
        far = int(order.indices[-1])
        work = serving.Workload(((5, 6, 7),), 1, (adapter,))
        serving.check(plain, work, [[int(order.indices[0])]])
        for token in {far} if dtype == torch.bfloat16 else {near, far} - {int(order.indices[0])}:
            with pytest.raises(serving.WrongResult, match="after the ones before"):
                serving.check(plain, work, [[token]])
        if dtype == torch.bfloat16:
            serving.check(plain, work, [[near]])


def test_a_wrong_kernel_gets_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu.add_lora_slices

    def wrong(x: Tensor, ys: Sequence[Tensor], segments: Segments, weights: SliceWeights) -> None:
        right(x * 1.5, ys, segments, weights)

    monkeypatch.setattr(cpu, "add_lora_slices", wrong)
    load = serving.Load(adapters=2, requests=3, prompt_tokens=5, new_tokens=16, rank=8, repeats=1)
    with pytest.raises(serving.WrongResult, match="PEFT alone draws"):
        serving.run(tiny_base(tmp_path / "base"), load)


def test_spread_is_median_and_extremes() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
