"""Training throughput: several jobs together on one resident base, the same jobs one after another there, and one PEFT process a job.

Every side does the same steps on the same tokens from the same adapters. A PEFT process counts from its start to its end, loading included;
the resident base of the other two sides is there already, as it is in a trainer, and the time it took to load is reported beside them.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mint_stream.app.measure import machine, spread, versions
from mint_stream.bench.training_jobs import MAX_GRAD_NORM, WEIGHT_DECAY, Load, final_loss, fresh_run, in_order, vocabulary_of
from mint_stream.bench.workload import write_peft
from mint_stream.bench.wrong import WrongResult
from mint_stream.model.base import ResidentBase, load_base
from mint_stream.trainer.exact_rows import Rows
from mint_stream.trainer.run import TrainingRun
from mint_stream.trainer.trainer import Trainer
from mint_stream.trainer.workshop import STATE_BYTES

PEFT_SCRIPT = Path(__file__).with_name("peft_training.py")
CLOSE = 0.02
"""How far our last loss may be from PEFT's, as a share: AdamW makes much of the last bits of small gradients."""


def run(base: Path, load: Load) -> dict[str, Any]:
    """Measure on the model directory `base`. Raises WrongResult when our jobs do not learn what PEFT's do."""
    begun = time.perf_counter()
    scene = Scene.of(base, load)
    loaded_s = time.perf_counter() - begun
    together, alone = scene.rounds(load, load.tokens, load.steps, load.repeats)
    peft = peft_processes(scene.resident, base, load)
    scene.check(load, peft)
    curve = {str(tokens): scene.ratio(load, tokens) for tokens in load.curve}
    peft_total = sum(one["process_s"] for one in peft)
    states = load.jobs * STATE_BYTES * fresh_run(scene.resident, load, 0, load.tokens).weights().parameters
    return {
        "jobs": load.jobs,
        "workload": {**asdict(load), "threads": torch.get_num_threads()},
        "seconds": {"together": spread(together), "own_sequential": spread(alone), "peft_sequential": peft_total, "base_loaded": loaded_s},
        "peft_process_s": spread([one["process_s"] for one in peft]) | {"start_up": spread([one["start_up_s"] for one in peft])},
        "ratios": {
            "vs_peft_sequential": peft_total / spread(together)["median"],
            "vs_own_sequential": spread(alone)["median"] / spread(together)["median"],
        },
        "curve_vs_own_sequential": curve,
        "isolation_bitwise": scene.isolated(load),
        "resident_bytes": scene.base_bytes + states,
        "memory_bytes": {"base": scene.base_bytes, "states": states},
        "machine": machine(),
        "versions": versions("torch", "transformers", "peft", "mint-stream"),
    }


@dataclass(frozen=True)
class Scene:
    """The resident base and its two trainers: as it is, which fills passes up so that rows keep their bits, and one that never does.

    The second is what the jobs one after another are timed with: they have no company that could change them.
    """

    resident: ResidentBase
    shared: Trainer
    plain: Trainer

    @classmethod
    def of(cls, base: Path, load: Load) -> "Scene":
        """Load the base."""
        resident = load_base(base, dtype=getattr(torch, load.dtype))
        packed = resident.packed
        return cls(resident, Trainer(packed), Trainer(packed, rows=Rows(4, 2048)))

    @property
    def base_bytes(self) -> int:
        """Of the base's weights, those tied counted once."""
        return sum({part.data_ptr(): part.numel() * part.element_size() for part in self.resident.model.parameters()}.values())

    def rounds(self, load: Load, tokens: int, steps: int, repeats: int) -> tuple[list[float], list[float]]:
        """Seconds of the jobs together and of the jobs one after another, in turn, after one round that is not counted."""
        sides: tuple[list[float], list[float]] = ([], [])
        self._timed(load, tokens, 1, True)
        for _ in range(repeats):
            for seconds, together in zip(sides, (True, False), strict=True):
                seconds.append(self._timed(load, tokens, steps, together))
        return sides

    def ratio(self, load: Load, tokens: int) -> dict[str, float]:
        """How many times faster together, at so many tokens a step."""
        together, alone = self.rounds(load, tokens, load.curve_steps, load.repeats)
        return spread([one / both for both, one in zip(together, alone, strict=True)])

    def _timed(self, load: Load, tokens: int, steps: int, together: bool) -> float:
        runs = [fresh_run(self.resident, load, number, tokens) for number in range(load.jobs)]
        begun = time.perf_counter()
        if together:
            advance(self.shared, runs, steps)
        else:
            for one in runs:
                advance(self.plain, [one], steps)
        return time.perf_counter() - begun

    def check(self, load: Load, peft: Sequence[Mapping[str, float]]) -> None:
        """Raises WrongResult when the losses of the jobs together are not those of PEFT."""
        runs = [fresh_run(self.resident, load, number, load.tokens) for number in range(load.jobs)]
        losses = advance(self.shared, runs, load.steps)
        for number, (ours, theirs) in enumerate(zip(losses, peft, strict=True)):
            if not math.isclose(ours, theirs["loss"], rel_tol=CLOSE, abs_tol=1e-3):
                raise WrongResult(f"job {number} ends at loss {ours}, with PEFT at {theirs['loss']}")

    def isolated(self, load: Load) -> bool:
        """Whether the first job ends in the same bits alone and beside all others, the second of which has learned NaN."""
        steps = min(load.steps, 5)
        alone, *company = (fresh_run(self.resident, load, number, load.tokens) for number in (0, *range(load.jobs)))
        if len(company) > 1:
            with torch.no_grad():
                company[1].adapter.masters.fill_(math.nan)
        advance(self.shared, [alone], steps)
        advance(self.shared, company, steps)
        return alone.weights().digest == company[0].weights().digest


def advance(trainer: Trainer, runs: Sequence[TrainingRun], steps: int) -> list[float]:
    """So many steps of every run; gives their last losses, NaN for one that failed."""
    losses = dict.fromkeys(runs, math.nan)
    going = list(runs)
    for _ in range(steps):
        for run, outcome in zip(going, trainer.step(going), strict=True):
            losses[run] = final_loss(outcome)
        going = [run for run in going if math.isfinite(losses[run])]
    return list(losses.values())


def peft_processes(resident: ResidentBase, base: Path, load: Load) -> list[dict[str, float]]:
    """One process a job, one after another: seconds from start to end, those before its first step, and its last loss."""
    with tempfile.TemporaryDirectory() as folder:
        return [_peft(resident, base, load, number, Path(folder, str(number))) for number in range(load.jobs)]


def _peft(resident: ResidentBase, base: Path, load: Load, number: int, folder: Path) -> dict[str, float]:
    write_peft(fresh_run(resident, load, number, load.tokens).weights(), folder)
    work = {
        "base": str(base),
        "adapter": str(folder),
        "dtype": load.dtype,
        "steps": load.steps,
        "learning_rate": load.learning_rate,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "sequences": in_order(load, number, load.tokens, vocabulary_of(resident)),
    }
    begun = time.perf_counter()
    script = [sys.executable, "-P", str(PEFT_SCRIPT)]  # -P: modules beside it have names of packages that transformers looks for
    done = subprocess.run(script, input=json.dumps(work), capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise WrongResult(f"PEFT's process ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"process_s": seconds, "start_up_s": seconds - found["training_s"]}
