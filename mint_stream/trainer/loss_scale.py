"""What a job's loss is multiplied with before gradients are made, where the base's dtype is so narrow that they would vanish. Pure."""

from dataclasses import dataclass

import torch

FIRST = 2.0**12
LIMIT = 2.0**24
GROWS_AFTER = 200


@dataclass
class LossScale:
    """Halved when a gradient overflows, and the step is made again; doubled after so many steps that did not. 1 for other dtypes, always.

    All scales are powers of two, so that where nothing overflows or vanishes they change no bit.
    """

    value: float = 1.0
    steps: int = 0
    """Made since it last changed."""

    @classmethod
    def of(cls, dtype: torch.dtype) -> "LossScale":
        """For a base of this dtype: fp16 has gradients too small for it, bf16 and fp32 have not."""
        return cls(FIRST if dtype == torch.float16 else 1.0)

    def shrink(self) -> bool:
        """A gradient is not finite: whether a smaller scale can help."""
        if self.value <= 1.0:
            return False
        self.value, self.steps = self.value / 2, 0
        return True

    def made(self) -> None:
        """A step was made with it."""
        self.steps += 1
        if self.value > 1.0 and self.steps >= GROWS_AFTER:
            self.value, self.steps = min(2 * self.value, LIMIT), 0
