"""Why a benchmark reports nothing."""


class WrongResult(Exception):
    """What was timed computes something else than it should; there is no number to report."""
