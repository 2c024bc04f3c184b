"""What is searched, and in how many samples at a time: the parts of a plan that need no weights and no data."""

import logging

import numpy as np

from hpcmpq.formats import FORMATS
from hpcmpq.plan import WorkUnit, make_units
from hpcmpq.planning.scaling import Site, Workload, best_samples_per_unit
from hpcmpq.settings import Config
from hpcmpq.space import Group, SearchSpace
from hpcmpq.targets import Target, narrowed
from hpcmpq.targets.gpus import computed_as_measured
from hpcmpq.targets.kv_cache import check_heads, check_numbered

log = logging.getLogger(__name__)

UNITS_PER_WORKER = 4
"""Units of each worker that a config counts on, where groups can be split so far: the last ones are short."""

STREAMED_PARTS = 8
"""Parts that groups are split into at most where a model is streamed: each part reads the blocks from its first one on,
half the model at a time."""

PLANNED_WORKERS = 64
"""Units are cut for this many workers when the config does not say: the same on every machine, since the plan
must not depend on where it is made. More workers help little once start-up takes as long as the units
(bench/scaling.py)."""

SAMPLE_S, SPREAD = 10.0, 0.1
"""A sample's time and how much it varies, for the same purpose; only the order of magnitude matters."""


def units_of(config: Config, fingerprint: str, num_groups: int, num_samples: int) -> tuple[WorkUnit, ...]:
    """The work units of a calibration, of as many groups and samples as the config says."""
    return make_units(
        fingerprint,
        num_groups,
        num_samples,
        groups_per_unit=config.sensitivity.groups_per_unit
        or _groups_per_unit(config, num_groups, num_samples),
        samples_per_unit=config.calibration.samples_per_unit or _samples_per_unit(config, num_samples),
    )


def _samples_per_unit(config: Config, num_samples: int) -> int:
    """Samples of a work unit where the config does not say."""
    return best_samples_per_unit(
        SAMPLE_S,
        num_samples,
        config.calibration.samples_per_pass,
        config.calibration.workers or PLANNED_WORKERS,
        Workload(np.array([]), SPREAD),
        Site(),
    )


def _groups_per_unit(config: Config, num_groups: int, num_samples: int) -> int:
    """Groups of a work unit where the config does not say: all, unless there are too few samples for the workers."""
    if config.calibration.workers is None:
        return num_groups
    num_ranges = -(
        -num_samples // (config.calibration.samples_per_unit or config.calibration.samples_per_pass)
    )
    most = min(num_groups, STREAMED_PARTS if config.model.stream else num_groups)
    parts = min(most, -(-UNITS_PER_WORKER * config.calibration.workers // num_ranges))
    return -(-num_groups // parts)


def search_space(config: Config, groups: tuple[Group, ...], target: Target | None) -> SearchSpace:
    """The groups with the formats, from few bits to many, that the target can hold of each."""
    names = tuple(sorted(config.formats, key=lambda name: (FORMATS[name].num_bits, name)))
    if config.gpu is not None:
        kept = computed_as_measured(config.gpu, names)
        if otherwise := [name for name in names if name not in kept]:
            log.info(
                "vLLM on gpu %s computes %s otherwise than measured: left out",
                config.gpu,
                ", ".join(otherwise),
            )
        names = kept
    weights = [group for group in groups if not group.is_cache]
    formats = (
        (names,) * len(weights) if target is None else narrowed(target, weights, names, config.quantizer)
    )
    lost = [name for name in names if not any(name in kept for kept in formats)]
    if lost:
        log.info("target %s cannot hold %s: left out", config.target, ", ".join(lost))
    partly = sum(len(kept) < len(names) - len(lost) for kept in formats)
    if partly:
        log.info("%d groups are no whole number of quantization groups wide and get fewer formats", partly)
    of_weights = iter(formats)
    cached = tuple(sorted(config.groups.kv_cache, key=lambda name: FORMATS[name].num_bits))
    caches = [group for group in groups if group.is_cache]
    if target is not None:
        check_heads(caches, cached)
        if len(cached) > 1:
            check_numbered(caches)
    return SearchSpace(groups, tuple(cached if group.is_cache else next(of_weights) for group in groups))
