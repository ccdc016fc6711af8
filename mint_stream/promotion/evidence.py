"""How sure one may be that a mean lies above a limit, from however many observations, looked at however often.

The evidence is the wealth of somebody who bets, at fair odds under "the mean is at most m", that the next observation lies above it:

    E(x_1..x_n; m) = mean over f of  prod_i (1 + (f / m) (x_i - m)),      x_i in [0, 1], 0 < m < 1, f in FRACTIONS

Law (Ville 1939): if the mean of the next observation, given the earlier ones, is never above m, then E ever reaches 1/a with probability
at most a, for any distribution on [0, 1], any n and any number of looks (test martingales: Waudby-Smith and Ramdas 2024). So "E >= 1/a"
shows that the mean is above m with confidence 1 - a, without assumptions and without correcting for looking again.
E grows in every x_i, and does not depend on their order: sums are rounded once (fsum).
"""

import math
from collections.abc import Iterable

FRACTIONS = (1 / 64, 1 / 16, 1 / 4, 1 / 2, 15 / 16)
"""Bets, as parts of the largest that cannot lose more than there is. The average of several is a fair bet, too."""

MOST = 1e12
"""Evidence beyond this is told as this."""


def against_mean(observations: Iterable[float], limit: float) -> float:
    """The evidence against "the mean is at most `limit`". Observations lie in [0, 1]; none gives 1."""
    seen = tuple(observations)
    return _mean(math.fsum(math.log1p(fraction / limit * (value - limit)) for value in seen) for fraction in FRACTIONS)


def against_rate(hits: int, trials: int, limit: float) -> float:
    """As `against_mean` for `trials` observations of which `hits` are 1 and the rest 0."""
    won = [math.log1p(fraction / limit * (1 - limit)) for fraction in FRACTIONS]
    lost = [math.log1p(-fraction) for fraction in FRACTIONS]
    return _mean(hits * gain + (trials - hits) * loss for gain, loss in zip(won, lost, strict=True))


def needed(confidence: float) -> float:
    """The evidence that shows something with this confidence."""
    return 1 / (1 - confidence)


def _mean(logarithms: Iterable[float]) -> float:
    top = math.log(MOST)
    wealths = [MOST if one >= top else math.exp(one) for one in logarithms]
    return min(MOST, math.fsum(wealths) / len(wealths))
