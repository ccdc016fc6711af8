"""Benchmarks: one file each, a function `run` that measures ours and the baseline in one go and refuses to report wrong results."""
