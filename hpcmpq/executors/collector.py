"""How often a process of ours looks for reference cycles that nobody holds."""

import gc

THRESHOLDS = (50_000, 20, 50)
"""Python's own are (700, 10, 10): while torch and transformers are read it looks through all that is there hundreds of
times and finds nothing, a fifth of the CPU time in which a small run starts. What holds memory here is freed by its
last reference, not by the collector."""


def collect_rarely() -> None:
    """For the start of a process that is ours; a library that is imported leaves its host's settings alone."""
    gc.set_threshold(*THRESHOLDS)
