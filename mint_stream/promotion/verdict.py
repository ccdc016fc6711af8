"""A decision as a value: what is to be done, why in a sentence, and every number it rests on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True)
class Judgement:
    """What a rule says of a candidate."""

    outcome: Outcome
    reason: str
    figures: Mapping[str, float]
