"""The time stage: measured times of the model's sequential sub-graphs in every combination of formats.

kernels.py       format and layer to what computes it here, checked against the format's definition
products.py      low-precision products as modules with packed weights
roundings.py     what happens to inputs in front of them, shared by layers that read the same value
combinations.py  which combinations of a sub-graph's formats are measured
passes.py        one pass of the model, part by part under a clock
measure.py       rounds of passes, interleaved
machine.py       the machine that times belong to
stage.py         rounds on disk, resumable, and their medians in RUN/time.json
"""

from hpcmpq.timing.stage import measure_times

__all__ = ["measure_times"]
