"""How many workers a calibration is worth."""

from hpcmpq.planning.scaling import Prediction, Site, Workload, predict, read_seconds

EFFICIENT = 0.8
"""Share of the workers' time that has to go into units."""


def recommend(work: Workload, site: Site, most: int) -> Prediction:
    """The largest number of workers up to `most` of whose time `EFFICIENT` goes into units; one where none is that.

    Powers of two and their halves above are tried: 1, 2, 3, 4, 6, 8, 12, ...
    """
    counts = {
        most,
        *(step * 2**k for k in range(most.bit_length()) for step in (1, 3) if step * 2**k <= most),
    }
    for num_workers in sorted(counts, reverse=True):
        # Start and reading alone are a bound, which spares most simulations.
        waits = work.startup_s + work.shared_s / num_workers
        waits += read_seconds(work.model_bytes, site, num_workers)
        ideal = float(work.seconds_U.sum()) / num_workers
        if num_workers == 1 or ideal >= EFFICIENT * (ideal + waits):
            made = predict(work, site, num_workers)
            if num_workers == 1 or made.efficiency >= EFFICIENT:
                return made
    raise AssertionError("one worker is among the counts")
