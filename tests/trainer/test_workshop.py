"""A job's work outside Kafka: validated whole, resumed exactly, uploaded as PEFT files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mint_stream.adapter import AdapterWeights
from mint_stream.errors import BaseMismatch, CorruptObject, InvalidDataset, InvalidJob, TrainingDiverged, UriNotAllowed
from mint_stream.messages.adapters import Revision
from mint_stream.messages.training import Hyperparameters, LoraSettings, RolloutTerms, TrainingJob
from mint_stream.model.base import ResidentBase, load_base
from mint_stream.model.forward import PackedModel
from mint_stream.store import Store, read_uri
from mint_stream.trainer.checkpoint import Checkpoints, folder_name
from mint_stream.trainer.rollouts import Scored, learned
from mint_stream.trainer.run import StepReport
from mint_stream.trainer.trainer import Trainer
from mint_stream.trainer.workshop import Work, Workshop, job_digest, job_path
from tests.factories import peft_files, tiny_base

LINES = "\n".join(json.dumps({"prompt": f"{n}+{n}=", "completion": str(2 * n)}) for n in range(11))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResidentBase, Trainer]:
    loaded = load_base(tiny_base(tmp_path_factory.mktemp("base")), device="cpu")
    return loaded, Trainer(PackedModel(loaded.model, loaded.linears, loaded.output_head))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sums.jsonl").write_text(LINES)
    return tmp_path


def workshop(base: tuple[ResidentBase, Trainer], root: Path) -> Workshop:
    allowed = [(root / "data").as_uri()]
    store = Store((root / "store").as_uri())
    return Workshop(base[0], store, lambda uri: read_uri(uri, allowed, 10**6), 16, base[1].most_tokens)


def job(root: Path, name: str = "j", file: str = "sums.jsonl", **changes: Any) -> TrainingJob:
    settings = {"steps": 9, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2, "max_length_tokens": 64, "micro_batch_tokens": 24}
    return TrainingJob(
        job_id=name,
        adapter_id="a",
        dataset_uri=(root / "data" / file).as_uri(),
        lora=changes.pop("lora", LoraSettings(rank=4, dropout=0.1)),
        hyperparameters=Hyperparameters(**(settings | changes.pop("hyperparameters", {}))),
        submitted_at_ms=0,
        **changes,
    )


def step(base: tuple[ResidentBase, Trainer], work: Work) -> StepReport:
    (outcome,) = base[1].step([work.run])
    if not isinstance(outcome, StepReport):
        raise outcome
    work.made(outcome)
    return outcome


def finished(base: tuple[ResidentBase, Trainer], work: Work, until: int = 9) -> str:
    while work.run.step < until:
        step(base, work)
    return work.run.weights().digest


@pytest.mark.parametrize("killed_at", [1, 4, 8])
def test_a_job_resumed_from_a_checkpoint_ends_in_the_bits_of_one_that_was_never_interrupted(base: Any, root: Path, killed_at: int) -> None:
    shop = workshop(base, root)
    whole = shop.prepare(job(root, "whole"), None)
    broken = shop.prepare(job(root, "broken"), None)
    finished(base, broken, killed_at)
    shop.save(broken, attempt=1)
    finished(base, broken, 9)  # what was done after the last checkpoint is lost
    again = workshop(base, root)
    resumed = again.resume(again.prepare(job(root, "broken"), None))
    assert (resumed.run.step, resumed.resumed, resumed.metrics.keys()) == (killed_at, "exact", {"loss", "grad_norm"})
    assert finished(base, resumed) == finished(base, whole)


def test_the_furthest_checkpoint_of_any_attempt_counts_and_two_are_kept(base: Any, root: Path) -> None:
    shop = workshop(base, root)
    work = shop.prepare(job(root), None)
    for step, attempt in [(1, 1), (2, 1), (3, 2), (4, 2)]:
        finished(base, work, step)
        shop.save(work, attempt)
    store = Store((root / "store").as_uri())
    assert [(name.step, name.attempt) for name in Checkpoints(store, "j").names()] == [(3, 2), (4, 2)]
    assert {path.rpartition("/")[0] for path in store.list_objects("jobs")} == {"jobs/j/2/3", "jobs/j/2/4"}
    latest = Checkpoints(store, "j").latest()
    assert latest is not None and latest.manifest.parent is not None and latest.manifest.parent.step == 3


@pytest.mark.parametrize("damage", ["optimizer.safetensors", "adapter_model.safetensors"])
def test_a_checkpoint_that_is_not_whole_is_an_error_and_never_a_cold_start(base: Any, root: Path, damage: str) -> None:
    shop = workshop(base, root)
    work = shop.prepare(job(root), None)
    finished(base, work, 2)
    shop.save(work, 1)
    file = root / "store" / "jobs" / "j" / "1" / "2" / damage
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(CorruptObject, match="is missing"):
        shop.resume(shop.prepare(job(root), None))
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptObject, match="is not what was written"):
        shop.resume(shop.prepare(job(root), None))


def test_resuming_on_another_fingerprint_says_inexact_and_so_does_whoever_goes_on_from_there(base: Any, root: Path) -> None:
    shop = workshop(base, root)
    work = shop.prepare(job(root), None)
    finished(base, work, 1)
    shop.fingerprint = "0" * 64
    shop.save(work, 1)
    for attempt in (2, 3):
        work = workshop(base, root).resume(shop.prepare(job(root), None))
        assert work.resumed == "inexact"
        finished(base, work, attempt)
        workshop(base, root).save(work, attempt)


def test_a_job_whose_settings_changed_does_not_go_on_from_its_checkpoint(base: Any, root: Path) -> None:
    shop = workshop(base, root)
    work = shop.prepare(job(root), None)
    finished(base, work, 1)
    shop.save(work, 1)
    assert shop.resume(shop.prepare(job(root).model_copy(update={"submitted_at_ms": 5}), None)).run.step == 1
    with pytest.raises(InvalidJob, match="the job's settings changed since"):
        shop.resume(shop.prepare(job(root, seed=1), None))


def test_the_tokens_of_a_whole_job_are_known_before_its_first_step(base: Any, root: Path) -> None:
    """Epochs and a part of one: what is planned is what the steps then send."""
    run = workshop(base, root).prepare(job(root, hyperparameters={"steps": 7, "batch_size": 5}), None).run
    planned, sent = run.planned_tokens, 0
    while not run.done:
        [made] = base[1].step([run])
        assert isinstance(made, StepReport)
        sent += made.tokens
    assert planned == sent > 0


QUESTIONS = "\n".join(json.dumps({"prompt": f"{n}?", "answer": str(n)}) for n in range(3))
DRAWN = RolloutTerms(grader="contains", group_size=4, max_tokens=5, loss="cispo")
GRPO: dict[str, Any] = {"method": "grpo", "publish_every_steps": 1, "rollouts": DRAWN, "file": "asked.jsonl"}


def test_a_job_that_draws_its_answers_has_questions_to_ask_and_a_bound_on_its_tokens(base: Any, root: Path) -> None:
    (root / "data" / "asked.jsonl").write_text(QUESTIONS)
    shop = workshop(base, root)
    run = shop.prepare(job(root, hyperparameters={"steps": 6, "batch_size": 2}, **GRPO), None).run
    assert (run.method, len(run.dataset), run.dataset.longest) == ("cispo", 3, 7)
    assert run.planned_tokens == 6 * 2 * 4 * 7
    asked = [question.item.answer for step in range(6) for question in run.questions(step)]
    assert sorted(asked[:3]) == sorted(asked[3:6]) == ["0", "1", "2"], "each once an epoch"
    with pytest.raises(InvalidDataset, match=r"item 1.* max_length_tokens 6"):
        shop.prepare(job(root, hyperparameters={"max_length_tokens": 6}, **GRPO), None)
    with pytest.raises(InvalidJob, match="pieces of 4096 tokens"):
        shop.prepare(job(root, hyperparameters={"batch_size": 512, "micro_batch_tokens": 4096}, **GRPO), None)


def graded(base: Any, work: Work, until: int) -> None:
    """Steps from answers that are a function of the step alone, every second one right."""
    while work.run.step < until:
        step_ = work.run.step
        groups = [
            [Scored(one.tokens, (step_, sample + 9), (-1.0, -2.0), float(sample % 2)) for sample in range(4)]
            for one in work.run.questions(step_)
        ]
        work.run.begin(learned(groups))
        step(base, work)


def test_a_graded_job_that_is_resumed_and_given_the_same_answers_ends_in_the_same_bits(base: Any, root: Path) -> None:
    (root / "data" / "asked.jsonl").write_text(QUESTIONS)
    shop, settings = workshop(base, root), {"steps": 6, "batch_size": 2, "warmup_steps": 0}
    whole, broken = (shop.prepare(job(root, name, hyperparameters=settings, **GRPO), None) for name in ("whole", "broken"))
    graded(base, whole, 6)
    graded(base, broken, 3)
    shop.save(broken, attempt=1)
    resumed = shop.resume(shop.prepare(job(root, "broken", hyperparameters=settings, **GRPO), None))
    assert (resumed.run.step, resumed.run.method, resumed.resumed) == (3, "cispo", "exact")
    graded(base, resumed, 6)
    assert resumed.run.weights().digest == whole.run.weights().digest


def test_a_job_submitted_again_at_another_time_or_priority_is_the_same_job(base: Any, root: Path) -> None:
    shop = workshop(base, root)
    first = job(root)
    for again in (first, first.model_copy(update={"priority": 7, "submitted_at_ms": 99})):
        assert job_digest(again) == job_digest(first) and job_digest(first) != job_digest(job(root, seed=5))
        shop.upload(shop.prepare(again, None))  # objects are put once: other bytes at the same path are an error


def test_an_upload_is_the_adapter_as_peft_reads_it_with_metrics_and_fingerprint(base: Any, root: Path) -> None:
    shop = workshop(base, root)
    work = shop.prepare(job(root), None)
    finished(base, work, 3)
    manifest = shop.upload(work)
    read = AdapterWeights.from_files(Store((root / "store").as_uri()).read_revision(manifest))
    assert read.digest == manifest.digest == work.run.weights().digest
    assert manifest.numeric_fingerprint == shop.fingerprint and manifest.metrics["loss"] > 0 and manifest.rank == 4


def test_the_record_of_a_job_is_put_by_its_first_upload_and_by_that_of_whoever_goes_on(base: Any, root: Path) -> None:
    shop, store = workshop(base, root), Store((root / "store").as_uri())
    work = shop.prepare(job(root), None)
    path = job_path(work.run.job)
    shop.upload(work)
    assert store.list_objects("jobs") == [path]
    store.delete_object(path)
    finished(base, work, 1)
    shop.upload(work)
    assert store.list_objects("jobs") == [], "nobody waits for it again"
    shop.upload(shop.prepare(job(root), None))
    assert store.list_objects("jobs") == [path]


def revision(shop: Workshop, work: Work, base: ResidentBase, **changes: Any) -> Revision:
    manifest = shop.upload(work)
    fields = {"adapter_id": "a", "number": 3, "state": "announced", "pool": "p", "announced_at_ms": 0, "base_digest": base.digest}
    return Revision(**(fields | {"uri": manifest.uri, "digest": manifest.digest} | changes))


def test_a_parent_with_adapted_experts_is_not_trained_on_and_says_what_it_adapts(tmp_path_factory: Any, root: Path) -> None:
    directory = tiny_base(tmp_path_factory.mktemp("mixture"), "mixtral")
    loaded = load_base(directory, device="cpu")
    shop = workshop((loaded, Trainer(PackedModel(loaded.model, loaded.linears, loaded.output_head))), root)
    weights = AdapterWeights.from_files(peft_files(directory, target_modules=[], target_parameters=["experts.down_proj"]))
    manifest = shop._store.put_revision(
        weights.to_peft(), digest=weights.digest, base_digest=loaded.digest, targets=weights.targets(), parameters=weights.parameters
    )
    parent = Revision(
        adapter_id="a",
        number=3,
        state="announced",
        digest=manifest.digest,
        pool="p",
        uri=manifest.uri,
        base_digest=loaded.digest,
        announced_at_ms=0,
    )
    with pytest.raises(InvalidJob, match=r"parent a@3 adapts model\.layers\.0\.mlp\.experts\.down_proj: .* not trained"):
        shop.prepare(job(root, "child", parent=3, lora=LoraSettings()), parent)


def test_a_parent_is_continued_as_it_is(base: Any, root: Path) -> None:
    shop = workshop(base, root)
    first = shop.prepare(job(root), None)
    finished(base, first, 3)
    parent = revision(shop, first, base[0])
    child = shop.prepare(job(root, "child", parent=3, lora=LoraSettings()), parent)
    assert child.run.weights().digest == first.run.weights().digest
    assert shop.prepare(job(root, "same", parent=3), parent).run.step == 0
    with pytest.raises(InvalidJob, match="lora differs from parent a@3"):
        shop.prepare(job(root, "other", parent=3, lora=LoraSettings(rank=2)), parent)
    with pytest.raises(BaseMismatch, match="was trained for base ffffffffffff"):
        shop.prepare(job(root, "c", parent=3), revision(shop, first, base[0], base_digest="f" * 64))
    with pytest.raises(InvalidJob, match="retired"):
        shop.prepare(job(root, "c", parent=3), parent.model_copy(update={"uri": None}))


def test_what_cannot_be_is_refused_before_anything_starts(base: Any, root: Path) -> None:
    shop = workshop(base, root)
    (root / "data" / "bad.jsonl").write_text(LINES + "\n{oops")
    (root / "secret.jsonl").write_text(LINES)
    with pytest.raises(InvalidDataset, match="line 12: not JSON"):
        shop.prepare(job(root, file="bad.jsonl"), None)
    with pytest.raises(UriNotAllowed):
        shop.prepare(job(root, file="../secret.jsonl"), None)
    with pytest.raises(InvalidDataset, match="there is no file"):
        shop.prepare(job(root, file="absent.jsonl"), None)
    with pytest.raises(InvalidJob, match="rank 32 is over this pool's cap of 16"):
        shop.prepare(job(root, lora=LoraSettings(rank=32)), None)
    with pytest.raises(InvalidJob, match="names no linear layer"):
        shop.prepare(job(root, lora=LoraSettings(target_modules=("wizard",))), None)
    with pytest.raises(InvalidJob, match="max_length_tokens 4096 exceeds the base's context of 256"):
        shop.prepare(job(root, hyperparameters={"max_length_tokens": 4096}), None)
    (root / "data" / "pairs.jsonl").write_text('{"prompt": "1+1=", "chosen": "2"}')
    with pytest.raises(InvalidDataset, match="line 1: rejected: Field required"):
        shop.prepare(job(root, file="pairs.jsonl", method="dpo"), None)


def test_pieces_larger_than_a_pass_are_refused_with_what_to_do(tmp_path_factory: Any, root: Path) -> None:
    """A row too large for the memory fails its own job, before anything starts."""
    (root / "data" / "long.jsonl").write_text(LINES + "\n" + json.dumps({"prompt": "x" * 100, "completion": "y" * 50}))
    loaded = load_base(tiny_base(tmp_path_factory.mktemp("base")), device="cpu")
    trainer = Trainer(PackedModel(loaded.model, loaded.linears, loaded.output_head), max_num_batched_tokens=128)
    small = workshop((loaded, trainer), root)
    settings = {"max_length_tokens": 200}
    with pytest.raises(InvalidJob, match=r"pieces of 151 tokens \(longest example 151, .*MINT_TRAINING__MAX_NUM_BATCHED_TOKENS"):
        small.prepare(job(root, file="long.jsonl", hyperparameters=settings), None)
    assert small.prepare(job(root, hyperparameters=settings), None).run.step == 0


def test_dpo_from_a_parent_refers_to_that_parent_after_a_resume_too(base: Any, root: Path) -> None:
    shop = workshop(base, root)
    first = shop.prepare(job(root), None)
    finished(base, first, 3)
    pairs = [json.dumps({"prompt": f"{n}+{n}=", "chosen": str(2 * n), "rejected": str(3 * n + 1)}) for n in range(5)]
    (root / "data" / "pairs.jsonl").write_text("\n".join(pairs))
    parent, child = revision(shop, first, base[0]), job(root, "dpo", file="pairs.jsonl", method="dpo", parent=3)
    whole, broken = shop.prepare(child, parent), shop.prepare(child, parent)
    assert step(base, whole).loss == pytest.approx(math.log(2), abs=0.01), "without dropout it would be exact"
    finished(base, broken, 4)
    shop.save(broken, attempt=1)
    resumed = shop.resume(shop.prepare(child, parent))
    assert (resumed.run.step, resumed.run.references) == (4, {})
    assert finished(base, resumed) == finished(base, whole)


def test_a_rate_far_too_high_ends_as_divergence_not_as_numbers(base: Any, root: Path) -> None:
    shop = workshop(base, root)
    work = shop.prepare(job(root, hyperparameters={"learning_rate": 1e30, "warmup_steps": 0}), None)
    with pytest.raises(TrainingDiverged, match="job j diverged at step"):
        finished(base, work)


def test_any_job_id_makes_one_safe_folder() -> None:
    names = [folder_name(name) for name in ("a", "../x", "a/b", ".", "~", "é" * 256, "é" * 255)]
    assert len(set(names)) == 7 and all("/" not in name and not name.startswith(".") and len(name) < 200 for name in names)


def test_a_jobs_state_is_counted_before_it_is_made(base: Any, root: Path) -> None:
    shop = workshop(base, root)
    for lora in (LoraSettings(rank=4), LoraSettings(rank=3, target_modules=("q_proj",)), LoraSettings(rank=2, rank_pattern={"v_proj": 5})):
        asked = job(root, lora=lora)
        held = shop.prepare(asked, None).run.adapter.masters.numel()
        narrow = 4 if base[0].dtype != torch.float32 else 0
        assert shop.state_bytes(asked, None) == held * (16 + narrow)
    assert shop.state_bytes(job(root, lora=LoraSettings(target_modules=("wizard",))), None) == 0
    work = shop.prepare(job(root), None)
    parent = revision(shop, work, base[0], size_bytes=4000)
    counted = [shop.state_bytes(job(root, method=method, parent=3), parent) for method in ("sft", "dpo")]
    assert counted[0] > 0 and counted[1] > counted[0]


def test_as_many_checkpoints_are_kept_as_asked_for(base: Any, root: Path) -> None:
    shop = Workshop(base[0], Store((root / "store").as_uri()), workshop(base, root)._read, 16, kept=3)
    work = shop.prepare(job(root), None)
    for until in range(1, 6):
        finished(base, work, until)
        shop.save(work, 1)
    assert [name.step for name in Checkpoints(Store((root / "store").as_uri()), "j").names()] == [3, 4, 5]


def test_a_loss_scale_outlives_its_trainer(base: Any, root: Path) -> None:
    shop = workshop(base, root)
    work = shop.prepare(job(root), None)
    finished(base, work, 1)
    work.run.scale.value, work.run.scale.steps = 64.0, 3
    shop.save(work, 1)
    resumed = shop.resume(shop.prepare(job(root), None)).run.scale
    assert (resumed.value, resumed.steps) == (64.0, 3)
