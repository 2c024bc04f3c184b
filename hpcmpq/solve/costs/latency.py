"""Latency: measured times of sequential sub-graphs, from the values of `RUN/time.json`; and arithmetic alone.

A sub-graph's time depends on the formats of all its groups together (a rounded input is shared, for one), so it is
one table over their options. What has no kernel, or was left out by the rule for many combinations, is ``inf``.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcmpq.formats import FORMATS
from hpcmpq.problem import Cost, CostTerm
from hpcmpq.space import SearchSpace


def latency_costs(space: SearchSpace, times: Mapping[str, Any]) -> list[Cost]:
    """`latency_s`, and one cost for every measured phase.

    ``latency_s`` is the first phase (a whole prompt, or a batch) and `generated_tokens` times the decoding of one
    token.

    Args:
        space: Whose options the tables are over.
        times: Values of `time.json`.
    """
    phases = [
        Cost(f"{name}_s", "seconds", *_phase(space, values)) for name, values in times["phases"].items()
    ]
    terms, constant = list(phases[0].terms), phases[0].constant
    if times["generated_tokens"] and len(phases) > 1:
        factor = float(times["generated_tokens"])
        terms += [CostTerm(term.groups, factor * term.table) for term in phases[1].terms]
        constant += factor * phases[1].constant
    zero_P = np.zeros(space.num_options)
    return [Cost("latency_s", "seconds", zero_P, tuple(terms), constant), *phases]


def original_latency_s(times: Mapping[str, Any]) -> float:
    """Seconds of the unquantized model, as `latency_s` counts them."""
    first, *others = (float(values["original_s"]) for values in times["phases"].values())
    return first + (float(times["generated_tokens"]) * others[0] if others else 0.0)


def mac_time_cost(space: SearchSpace) -> Cost:
    """Theoretical time of the arithmetic: macs × bits of the wider factor / 16.

    A product takes as long as its wider factor, so weight-only formats gain nothing below 16 bits.
    """
    mac_time_P = [
        space.groups[o.group].macs * max(FORMATS[o.format].num_bits, FORMATS[o.format].activation_bits) / 16.0
        for o in space.options
    ]
    return Cost("mac_time", "16-bit multiply-accumulates per sample", np.array(mac_time_P))


def _phase(space: SearchSpace, values: Mapping[str, Any]) -> tuple[np.ndarray, tuple[CostTerm, ...], float]:
    """Linear part, terms and constant of one phase."""
    index = {group.name: g for g, group in enumerate(space.groups)}
    terms: list[CostTerm] = []
    for part in values["parts"]:
        if part["groups"]:
            groups = [index[name] for name in part["groups"]]
            terms += _part_terms(space, groups, values["classes"][part["class"]])
    return np.zeros(space.num_options), tuple(terms), float(values["shared_s"])


def _part_terms(space: SearchSpace, groups: list[int], found: Mapping[str, Any]) -> list[CostTerm]:
    """The table over the first group of every tied set, and for each other group one that ties it to its first."""
    firsts = [own[0] for own in found["tied"]]
    table = np.full([len(space.formats[groups[place]]) for place in firsts], np.inf)
    for row in found["combinations"]:
        named = [(space.formats[groups[place]], row["formats"][place]) for place in firsts]
        if all(name in names for names, name in named):  # all but those that screening ruled out
            table[tuple(names.index(name) for names, name in named)] = row["seconds"]
    terms = [CostTerm(tuple(groups[place] for place in firsts), table)]
    for first, *others in found["tied"]:
        for other in others:
            names, more = space.formats[groups[first]], space.formats[groups[other]]
            same = np.array([[0.0 if a == b else np.inf for b in more] for a in names])
            terms.append(CostTerm((groups[first], groups[other]), same))
    return terms
