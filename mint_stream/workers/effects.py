"""The effects of a trainer, by name, for whoever wants to act right after one: tests that kill it, benchmarks that stamp it."""

from collections.abc import Callable

After = Callable[[str], None]
"""Called with the name of an effect once it is durable: claimed, checkpoint-durable, files-durable, announced, answered,
publish-reported, end-reported, record-closed; and `passed` after each pass, `stepped` after each step of a job."""
