"""The trainer's arithmetic: PEFT's gradients, falling loss, and jobs that do not feel each other."""

import math
import random
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional

from mint_stream.adapter import AdapterLayer, AdapterWeights
from mint_stream.errors import BaseUnusable, DeviceLost, EngineFailed, InvalidDataset, TrainingDiverged
from mint_stream.messages.training import Hyperparameters, LoraSettings, TrainingJob
from mint_stream.model.forward import PackedModel
from mint_stream.model.tiny import linear_paths, tiny_model
from mint_stream.trainer.dataset import Dataset
from mint_stream.trainer.examples import Example, Preference, Rollout
from mint_stream.trainer.optimizer import FlatAdapter
from mint_stream.trainer.run import StepReport, TrainingRun
from mint_stream.trainer.trainer import Trainer

KINDS = ("llama", "qwen3", "gemma2", "mistral")


def example(draw: random.Random, length: int) -> Example:
    tokens = tuple(draw.randrange(256) for _ in range(length))
    return Example(tokens, (0.0, *(draw.choice([0.0, 1.0, 0.5]) for _ in range(length - 2)), 1.0))


def dataset(seed: int = 0, count: int = 12) -> Dataset:
    draw = random.Random(seed)
    return Dataset(tuple(example(draw, draw.randrange(3, 30)) for _ in range(count)), "0" * 64)


def job(name: str = "j", lora: LoraSettings | None = None, seed: int = 0, **hyperparameters: Any) -> TrainingJob:
    settings = Hyperparameters(**({"steps": 10, "batch_size": 4, "learning_rate": 1e-2, "micro_batch_tokens": 40} | hyperparameters))
    return TrainingJob(
        job_id=name,
        adapter_id="a",
        dataset_uri="file:///none",
        lora=lora or LoraSettings(rank=4, alpha=8.0),
        hyperparameters=settings,
        seed=seed,
        submitted_at_ms=0,
    )


def trained_a_little(job: TrainingJob, linears: dict[str, tuple[int, int]]) -> AdapterWeights:
    """Fresh weights whose B is not zero, so that A has gradients."""
    fresh = AdapterWeights.fresh(job.lora, linears, job.seed)
    draw = torch.Generator().manual_seed(1)
    layers = {path: AdapterLayer(one.A, torch.randn(one.B.shape, generator=draw) * 0.05, one.scaling) for path, one in fresh.layers.items()}
    return AdapterWeights(layers=layers, config=fresh.config)


def prepared(kind: str = "llama", **changes: Any) -> tuple[Trainer, dict[str, tuple[int, int]]]:
    model = tiny_model(kind, **changes)
    linears = linear_paths(model)
    return Trainer(PackedModel(model, linears)), linears


def run_of(job: TrainingJob, linears: dict[str, tuple[int, int]], data: Dataset | None = None) -> TrainingRun:
    return TrainingRun(job, data or dataset(), FlatAdapter(trained_a_little(job, linears)))


def stepped(trainer: Trainer, *runs: TrainingRun) -> list[StepReport]:
    reports = trainer.step(runs)
    assert all(isinstance(report, StepReport) for report in reports)
    return [report for report in reports if isinstance(report, StepReport)]


def peft_gradients(kind: str, weights: AdapterWeights, examples: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of PEFT on the stock model, each example by itself."""
    config = peft.LoraConfig(**{name: value for name, value in weights.config.items() if name not in ("peft_type", "inference_mode")})
    model = peft.get_peft_model(tiny_model(kind), config)
    own = dict(model.named_parameters())
    for path, layer in weights.layers.items():
        for side in "AB":
            own[f"base_model.model.{path}.lora_{side}.default.weight"].data.copy_(getattr(layer, side))
    loss = torch.zeros(())
    for one in examples:
        logits = model(input_ids=torch.tensor([one.tokens])).logits[0, :-1]
        nll = functional.cross_entropy(logits, torch.tensor(one.tokens[1:]), reduction="none")
        loss = loss + (nll * torch.tensor(one.weights[1:])).sum()
    loss = loss / sum(one.learned for one in examples)
    loss.backward()
    gradients = {name: value.grad for name, value in own.items() if value.grad is not None}
    return loss.item(), gradients


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT 0.21 asks for it
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_one_step_are_pefts(kind: str) -> None:
    lora = LoraSettings(rank=4, alpha=8.0, rank_pattern={"q_proj": 2}, target_modules=("q_proj", "v_proj", "down_proj", "lm_head"))
    lora = lora if kind != "gemma2" else lora.model_copy(update={"target_modules": ("q_proj", "v_proj", "down_proj")})
    trainer, linears = prepared(kind)
    run = run_of(job(lora=lora), linears)
    weights, batch = run.weights(), run.batch()
    assert len(batch) > 1, "the batch should take several micro-batches"
    seen: dict[str, torch.Tensor] = {}
    run.optimizer.step = lambda rate: seen.update(flat=run.adapter.gradients.clone())  # type: ignore[method-assign]
    run.optimizer.clip = lambda norm: 0.0  # type: ignore[method-assign]
    (report,) = stepped(trainer, run)
    loss, expected = peft_gradients(kind, weights, [one for piece in batch for one in piece.examples])
    assert report.loss == pytest.approx(loss, abs=1e-5)
    run.adapter.gradients.copy_(seen["flat"])
    for path, ours in run.adapter.lora_weights(lambda _: None).items():
        a, b = (expected[f"base_model.model.{path}.lora_{side}.default.weight"] for side in "AB")
        assert ours.grad_A is not None and ours.grad_Bt is not None
        torch.testing.assert_close(ours.grad_A, a, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.grad_Bt.t(), b, atol=1e-5, rtol=1e-4)


def test_the_loss_falls() -> None:
    trainer, linears = prepared()
    run = run_of(job(steps=30, schedule="constant"), linears, dataset(count=4))
    losses = [stepped(trainer, run)[0].loss for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0] and run.done


def test_a_job_ends_in_the_same_bits_alone_and_in_company() -> None:
    trainer, linears = prepared(hidden_size=64, intermediate_size=128)  # see MIN_ROWS in trainer.py for why these widths

    def fresh() -> TrainingRun:
        return run_of(job("mine", LoraSettings(rank=4, dropout=0.1), seed=3), linears)

    alone, company = fresh(), fresh()
    others = [run_of(job("o1", LoraSettings(rank=8), seed=1, batch_size=7), linears), run_of(job("o2", seed=2, batch_size=1), linears)]
    for _ in range(4):
        assert stepped(trainer, alone)[0] == stepped(trainer, others[0], company, others[1])[1]
    assert alone.weights().digest == company.weights().digest


def test_a_job_ends_in_the_same_bits_alone_and_among_seven_others_one_of_which_is_all_nan() -> None:
    """Decay and clipping on; ranks, targets, rates and micro-batches of their own."""
    trainer, linears = prepared(hidden_size=64, intermediate_size=128)
    strict = {"weight_decay": 0.1, "max_grad_norm": 0.05, "schedule": "cosine", "warmup_steps": 2}

    def mine() -> TrainingRun:
        return run_of(job("a", LoraSettings(rank=4, dropout=0.05), seed=9, **strict), linears)

    alone, company = mine(), mine()
    sick = run_of(job("b"), linears)
    with torch.no_grad():
        sick.adapter.masters.fill_(torch.nan)
    others = [
        run_of(job(name, LoraSettings(rank=rank, target_modules=("q_proj", "down_proj")), seed=rank, batch_size=rank), linears)
        for name, rank in zip("cdefgh", (1, 2, 3, 5, 6, 8), strict=True)
    ]
    for step in range(6):
        (expected,) = stepped(trainer, alone)
        outcomes = trainer.step([*others[:3], *([sick] if step < 2 else []), company, *others[3:]])
        assert expected in outcomes and expected.grad_norm > 0.05
        assert [isinstance(outcome, TrainingDiverged) for outcome in outcomes].count(True) == (1 if step < 2 else 0)
    assert alone.weights().digest == company.weights().digest
    assert torch.equal(alone.optimizer.moments()["exp_avg_sq"], company.optimizer.moments()["exp_avg_sq"])


def test_a_job_that_diverges_gets_an_error_keeps_its_masters_and_harms_nobody() -> None:
    trainer, linears = prepared(hidden_size=64, intermediate_size=128)
    sick, well, alone = (run_of(job(name), linears) for name in ("sick", "well", "alone"))
    with torch.no_grad():
        sick.adapter.masters[5] = torch.inf
    before = sick.adapter.masters.detach().clone()
    error, report = trainer.step([sick, well])
    assert isinstance(error, TrainingDiverged) and "job sick diverged at step 1" in str(error)
    torch.testing.assert_close(sick.adapter.masters.detach(), before)
    assert stepped(trainer, alone) == [report] and well.weights().digest == alone.weights().digest


def test_gradients_are_clipped_to_the_jobs_norm() -> None:
    trainer, linears = prepared()
    loose, tight = (run_of(job(max_grad_norm=norm), linears) for norm in (1e9, 1e-3))
    assert stepped(trainer, loose)[0].grad_norm == stepped(trainer, tight)[0].grad_norm > 1e-3
    moments = tight.optimizer.moments()["exp_avg"]
    assert float(moments.norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_a_bf16_base_trains_fp32_masters() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    trainer, linears = Trainer(PackedModel(model, linear_paths(model))), linear_paths(model)
    settings = job(steps=30, schedule="constant")
    run = TrainingRun(settings, dataset(count=4), FlatAdapter(AdapterWeights.fresh(settings.lora, linears, 0), torch.bfloat16))
    losses = [stepped(trainer, run)[0].loss for _ in range(30)]
    assert losses[-1] < 0.6 * losses[0] and run.adapter.masters.dtype == torch.float32


def test_a_step_whose_gradients_overflow_is_made_again_at_a_smaller_scale_and_is_the_same_step() -> None:
    model = tiny_model("llama", hidden_size=64, intermediate_size=128).to(torch.float16)
    trainer, linears = Trainer(PackedModel(model, linear_paths(model))), linear_paths(model)

    def half_run(scale: float) -> TrainingRun:
        run = TrainingRun(job(), dataset(), FlatAdapter(trained_a_little(job(), linears), torch.float16))
        run.scale.value = scale
        return run

    large, fitting = half_run(2.0**30), half_run(2.0**8)
    neighbour = half_run(2.0**8)
    reports = [stepped(trainer, large, neighbour), stepped(trainer, fitting)]
    assert 1.0 < large.scale.value < 2.0**30 and neighbour.scale.value == 2.0**8
    assert reports[0][0].grad_norm == pytest.approx(reports[1][0].grad_norm, rel=1e-2) and large.step == 1
    assert neighbour.weights().digest == fitting.weights().digest


def test_a_base_whose_logits_are_more_than_its_head_is_refused() -> None:
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda module, inputs, output: output)
    plain = model.forward
    model.forward = lambda *args, **kwargs: _scaled(plain(*args, **kwargs))
    with pytest.raises(BaseUnusable, match="does more to its logits"):
        Trainer(PackedModel(model, linear_paths(model)))


def _scaled(output: Any) -> Any:
    output.logits = output.logits * 3
    return output


def stock_logp(kind: str, weights: AdapterWeights | None, one: Example) -> torch.Tensor:
    """Log-probabilities of the weighted tokens by the stock model, the adapter merged into it by hand."""
    model = tiny_model(kind)
    for path, layer in (weights.layers if weights else {}).items():
        model.get_submodule(path).weight.data += layer.scaling * (layer.B @ layer.A)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([one.tokens])).logits[0, :-1]
    found = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(one.tokens[1:])[:, None]).squeeze(1)
    return found[torch.tensor(one.weights[1:]) > 0]


def preferences(count: int = 6) -> Dataset:
    draw = random.Random(5)
    pairs = [Preference(*(_answer(draw, draw.randrange(4, 12)) for _ in range(2))) for _ in range(count)]
    return Dataset(tuple(pairs), "0" * 64)


def _answer(draw: random.Random, length: int) -> Example:
    return Example(tuple(draw.randrange(256) for _ in range(length)), (0.0, 0.0, *(1.0,) * (length - 2)))


def dpo_job(**hyperparameters: Any) -> TrainingJob:
    return job(**({"batch_size": 3, "dpo_beta": 0.5} | hyperparameters)).model_copy(update={"method": "dpo"})


def test_dpo_of_one_step_is_the_formula_with_the_bare_base_as_reference() -> None:
    trainer, linears = prepared()
    run = run_of(dpo_job(), linears, preferences())
    weights, pairs = run.weights(), [one for piece in run.batch() for one in piece.examples if isinstance(one, Preference)]
    margins = [
        sum(sign * float((stock_logp("llama", weights, one) - stock_logp("llama", None, one)).sum()) for one, sign in signs)
        for signs in (((pair.chosen, 1), (pair.rejected, -1)) for pair in pairs)
    ]
    expected = sum(-math.log(1 / (1 + math.exp(-0.5 * margin))) for margin in margins) / len(pairs)
    assert stepped(trainer, run)[0].loss == pytest.approx(expected, abs=1e-5)


def test_dpo_widens_the_margin_over_the_parent_it_starts_from() -> None:
    trainer, linears = prepared()
    data = preferences(count=3)
    run = run_of(dpo_job(steps=20, schedule="constant", learning_rate=3e-3), linears, data)
    run.start = FlatAdapter(run.weights()).lora_weights(lambda _: None)
    losses = [stepped(trainer, run)[0].loss for _ in range(20)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5) and losses[-1] < 0.2
    assert len(run.references) == 3, "each pair is referred once"


@pytest.mark.parametrize("method", ["importance_sampling", "ppo", "cispo"])
def test_rollouts_with_advantages_move_the_policy_towards_the_better_ones(method: str) -> None:
    trainer, linears = prepared()
    run = run_of(job(steps=5, schedule="constant", learning_rate=1e-3), linears)
    run.method = method
    draw = random.Random(3)
    answers = [_answer(draw, 9) for _ in range(4)]

    def judged(one: Example, advantage: float) -> Rollout:
        logp = stock_logp("llama", run.weights(), one).tolist()
        return Rollout(one.tokens, one.weights, (0.0, 0.0, *logp), (0.0, 0.0, *[advantage] * 7))

    def likelihoods() -> list[float]:
        return [float(stock_logp("llama", run.weights(), one).sum()) for one in answers]

    before = likelihoods()
    for _ in range(3):
        run.begin([judged(one, advantage) for one, advantage in zip(answers, (1.0, -1.0, 1.0, -1.0), strict=True)])
        stepped(trainer, run)
    gains = [after - was for after, was in zip(likelihoods(), before, strict=True)]
    assert min(gains[0], gains[2]) > 0 > max(gains[1], gains[3])


def test_a_rollout_with_a_number_short_is_refused() -> None:
    with pytest.raises(InvalidDataset, match="as many tokens"):
        Rollout((1, 2), (0.0, 1.0), (0.0,), (0.0, 1.0))


def test_a_row_that_torch_refuses_fails_its_own_job_and_its_neighbours_steps_keep_their_bits() -> None:
    """The fault shows in a pass that all share, after some of its gradients may have been added."""
    trainer, linears = prepared(hidden_size=64, intermediate_size=128)
    good, alone, other = (run_of(job(name, seed=seed), linears) for name, seed in (("good", 0), ("alone", 0), ("other", 2)))
    bad = run_of(job("bad"), linears, Dataset((Example((1, 2, 10**6, 3), (0.0, 1.0, 1.0, 1.0)),), "0" * 64))
    first, error, second = trainer.step([good, bad, other])
    assert isinstance(error, EngineFailed) and "job bad failed in torch at step 1: IndexError" in str(error)
    assert stepped(trainer, alone) == [first] and isinstance(second, StepReport)
    assert alone.weights().digest == good.weights().digest
    assert not bad.adapter.gradients.any()
    assert isinstance(trainer.step([good, other])[0], StepReport)


@pytest.mark.parametrize(("weight", "reason"), [(torch.zeros(3), "RuntimeError"), (torch.full((64,), torch.nan), "not finite")])
def test_a_base_that_computes_nothing_any_more_is_told_from_a_job_that_fails(weight: torch.Tensor, reason: str) -> None:
    """As after a CUDA error, which stays until the process ends."""
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    trainer = Trainer(PackedModel(model, linear_paths(model)))
    trainer.prove()
    model.model.norm.weight.data = weight
    with pytest.raises(DeviceLost, match=reason):
        trainer.prove()


def test_a_large_job_does_not_hold_up_a_small_one() -> None:
    """Steps end when their own pieces are through: nobody waits for the longest step of all."""
    model = tiny_model("llama")
    trainer, linears = Trainer(PackedModel(model, linear_paths(model)), 64), linear_paths(model)
    large = run_of(job("large", batch_size=24, steps=100).model_copy(update={"tenant": "one"}), linears)
    small = run_of(job("small", batch_size=1, steps=100).model_copy(update={"tenant": "two"}), linears)
    ended: list[str] = []
    while "large" not in ended:
        ended += [run.job.job_id for run in trainer.advance([large, small])]
    assert ended.count("small") >= 4


def test_experts_see_their_neighbours_and_still_give_a_job_its_gradients_within_1e_5() -> None:
    trainer, linears = prepared("mixtral")
    found = []
    for others in ((), (run_of(job("o", seed=1), linears), run_of(job("p", seed=2), linears))):
        run = run_of(job("mine", seed=3), linears)
        run.optimizer.step = lambda rate, run=run: found.append(run.adapter.gradients.clone())  # type: ignore[method-assign, misc]
        stepped(trainer, *others, run)
    assert float((found[0] - found[1]).norm()) <= 1e-5 * max(1.0, float(found[0].norm()))
