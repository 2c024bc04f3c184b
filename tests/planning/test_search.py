"""How work units are cut."""

import pytest

from hpcmpq.config import parse_config
from hpcmpq.planning.search import STREAMED_PARTS, UNITS_PER_WORKER, units_of
from hpcmpq.settings import Config

NUM_GROUPS = 560


def config_of(stream: bool = False, sensitivity: dict | None = None, **calibration: int | None) -> Config:
    return parse_config(
        {
            "model": {"path": "models/tiny-llama", "stream": stream},
            "calibration": {"data": "text.txt", **calibration},
            "sensitivity": sensitivity or {},
        }
    )


def shapes(config: Config, num_samples: int) -> set[tuple[int, int]]:
    """Groups and samples of the units, but for the last of each."""
    units = units_of(config, "f", NUM_GROUPS, num_samples)
    return {
        (unit.group_stop - unit.group_start, unit.sample_stop - unit.sample_start)
        for unit in units
        if unit.group_stop < NUM_GROUPS or unit.group_start == 0
    }


def test_without_a_number_of_workers_units_have_all_groups():
    assert shapes(config_of(), 128) == {(NUM_GROUPS, 4)}


@pytest.mark.parametrize(
    ("workers", "num_samples", "stream", "expected"),
    [
        (1, 128, False, (NUM_GROUPS, 128)),  # groups are split where samples are too few, and nowhere else
        (32, 512, True, (NUM_GROUPS, 4)),
        (1024, 512, False, (18, 4)),  # 32 parts, of 128 passes each: four units a worker
        (1024, 512, True, (NUM_GROUPS // STREAMED_PARTS, 4)),
        (10**6, 4, False, (1, 4)),  # no unit is smaller than a group and a pass
    ],
)
def test_units_are_cut_for_the_workers_that_a_config_names(workers, num_samples, stream, expected):
    config = config_of(stream, workers=workers, samples_per_pass=4)
    assert shapes(config, num_samples) == {expected}
    units = units_of(config, "f", NUM_GROUPS, num_samples)
    assert sum(unit.size for unit in units) == NUM_GROUPS * num_samples
    assert stream or num_samples < 512 or len(units) >= UNITS_PER_WORKER * workers


def test_sizes_that_a_config_names_stay():
    config = config_of(workers=1024, sensitivity={"groups_per_unit": 100}, samples_per_unit=32)
    assert shapes(config, 128) == {(100, 32)}
