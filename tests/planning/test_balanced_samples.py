"""`calibration.balance_experts`: samples for rounding that give the least used experts more tokens, kept by a run."""

import dataclasses
import itertools
import logging
import random
import string
from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import e
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hpcmpq.cli import summaries
from hpcmpq.config import parse_config
from hpcmpq.errors import PlanMismatch, UserError
from hpcmpq.executors.in_process import InProcess
from hpcmpq.executors.local_pool import LocalPool
from hpcmpq.models.data.kept_samples import planned_splits, rounding_samples
from hpcmpq.models.data.samples import SamplePool, Samples
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.load import load_model
from hpcmpq.plan import Plan, plan_to_json
from hpcmpq.planning import balanced_samples
from hpcmpq.planning.balanced_samples import balanced_choice, check_balance, routed_tokens
from hpcmpq.planning.original import load_original
from hpcmpq.planning.stage import prepare
from hpcmpq.rounding.option_units import round_options
from hpcmpq.settings import Config, EvaluationConfig, to_values
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import llama, plan_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def unbalance(tokens_NLE: np.ndarray, chosen: Iterable[int]) -> Fraction:
    """Σ 1 / (1 + tokens), exactly."""
    columns = tokens_NLE.reshape(len(tokens_NLE), -1).T.tolist()
    chosen = list(chosen)
    return sum((Fraction(1, 1 + sum(column[n] for n in chosen)) for column in columns), Fraction())


@st.composite
def token_counts(draw: st.DrawFn) -> np.ndarray:
    """Of few samples and experts, small enough that sums that differ do so by more than 1e-9."""
    shape = [draw(st.integers(1, top)) for top in (6, 2, 3)]
    size = int(np.prod(shape))
    values = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    return np.array(values).reshape(shape)


@given(token_counts(), st.integers(0, 7))
def test_each_sample_is_the_first_of_those_that_leave_least(tokens_NLE: np.ndarray, count: int):
    taken: list[int] = []
    while len(taken) < min(count, len(tokens_NLE)):
        left = [n for n in range(len(tokens_NLE)) if n not in taken]
        taken.append(min(left, key=lambda n: unbalance(tokens_NLE, [*taken, n])))
    assert balanced_choice(tokens_NLE, count) == sorted(taken)


@given(token_counts(), st.integers(1, 5))
def test_the_sum_falls_by_most_of_what_the_best_choice_lowers_it_by(tokens_NLE: np.ndarray, count: int):
    count = min(count, len(tokens_NLE))
    before = unbalance(tokens_NLE, [])
    best = min(unbalance(tokens_NLE, c) for c in itertools.combinations(range(len(tokens_NLE)), count))
    chosen = balanced_choice(tokens_NLE, count)
    assert len(set(chosen)) == count
    fallen = float(before - unbalance(tokens_NLE, chosen))
    assert fallen >= (1 - 1 / e) * float(before - best) - 1e-12


def test_equal_sums_of_other_terms_are_a_tie():
    """1/2 + 1/3 + 1/6 and 1/3 + 1/3 + 1/3 are 1 both, in floating point one of them is not; the first is taken."""
    first, second = [[[1, 2, 5]], [[2, 2, 2]]], [[[2, 2, 2]], [[1, 2, 5]]]
    assert balanced_choice(np.array(first), 1) == balanced_choice(np.array(second), 1) == [0]


def mixture(path: Path, **calibration: object) -> Config:
    """The shipped mixture on small settings, of two projections of experts."""
    values = yaml.safe_load((ROOT / "configs" / "mixture.yaml").read_text())
    values["model"] = {"path": str(ROOT / "configs" / "mixture_model")}
    values["calibration"] |= {
        "num_samples": 4,
        "held_out": 2,
        "sequence_length": 64,
        "rounding_samples": 6,
        "balance_experts": True,
        **calibration,
    }
    values["evaluation"]["num_samples"] = 2
    values |= {
        "formats": ["int3"],
        "budgets": {},
        "groups": {"include": ["*.experts.*"]},
        "quantizer": {"rounding": "gptq", "group_size": 64},
    }
    return parse_config(values)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Plan]:
    path = tmp_path_factory.mktemp("mixture")
    run = RunDir(path / "run")
    return run, prepare(mixture(path), run, ())


def chosen_experts(model: nn.Module, samples: Samples) -> np.ndarray:
    """Tokens of each sample by layer and expert, from what the gates put out for one sample after another."""
    seen: list[torch.Tensor] = []
    gates = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    handles = [gate.register_forward_hook(lambda _m, _x, out: seen.append(out[0])) for gate in gates]
    counts_NLE = np.zeros((len(samples), len(gates), model.config.num_experts), int)
    with torch.no_grad():
        for n in range(len(samples)):
            seen.clear()
            model(**samples[n].inputs)
            for layer, logits_TE in enumerate(seen):
                experts = logits_TE.argsort(dim=-1, descending=True)[:, : model.config.num_experts_per_tok]
                counts_NLE[n, layer] = np.bincount(experts.flatten().numpy(), minlength=counts_NLE.shape[2])
    for handle in handles:
        handle.remove()
    return counts_NLE


def test_the_samples_of_a_run_give_the_least_used_expert_more_tokens(planned, capsys):
    """Counted by the outputs of the gates, sample by sample; candidates are four times the samples that are wanted."""
    run, plan = planned
    candidates = load_splits(plan.config).candidates.samples
    assert len(candidates) == 24 == plan.balanced["num_candidates"]
    tokens_NLE = chosen_experts(load_model(plan.config.model), candidates)
    chosen = plan.balanced["chosen"]
    assert chosen == balanced_choice(tokens_NLE, 6) and len(set(chosen)) == 6
    first, fewest = (int(tokens_NLE[part].sum(0).min()) for part in (slice(6), chosen))
    assert (plan.balanced["fewest_tokens_first"], plan.balanced["fewest_tokens"]) == (first, fewest)
    assert unbalance(tokens_NLE, chosen) < unbalance(tokens_NLE, range(6))
    assert rounding_samples(run, plan).content_hashes() == candidates[chosen].content_hashes()
    summaries.planned(plan)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"6 of 24 candidates: the least used expert has {fewest} tokens, {first} with the first 6" in shown


def test_the_first_candidates_are_what_is_taken_without_the_key_and_all_other_samples_stay(planned):
    _, plan = planned
    with_it = load_splits(plan.config)
    plain = load_splits(mixture(Path(), balance_experts=False))
    assert with_it.rounding is None and plain.candidates is None
    assert with_it.candidates.samples[:6].content_hashes() == plain.rounding.content_hashes()
    for part in ("calibration", "held_out", "evaluation"):
        assert getattr(with_it, part).content_hashes() == getattr(plain, part).content_hashes()


def test_streamed_and_with_other_passes_the_counts_are_the_same(planned):
    run, plan = planned
    candidates = load_splits(plan.config).candidates.samples[:7]
    config = plan.config
    streamed = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, stream=True),
        calibration=dataclasses.replace(config.calibration, samples_per_pass=3),
    )
    found = [
        routed_tokens(load_original(own, ()), candidates, plan.space.groups, size)
        for own, size in ((config, 100), (streamed, 6))
    ]
    assert found[0].shape == (7, 4, 8)
    assert (found[0].sum(axis=2) == 64 * 2).all()
    assert np.array_equal(*found)


def counting_again(*_: object) -> None:
    raise AssertionError("tokens were counted again")


def test_a_second_plan_keeps_the_samples_and_their_file_without_counting(planned, monkeypatch):
    run, plan = planned
    monkeypatch.setattr(balanced_samples, "routed_tokens", counting_again)
    path = run.file("rounding_samples.safetensors")
    before = path.stat()
    again = prepare(plan.config, run, ())
    assert (again.balanced, again.fingerprint) == (plan.balanced, plan.fingerprint)
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_without_their_file_the_samples_are_those_of_the_plan(planned):
    run, plan = planned
    path = run.file("rounding_samples.safetensors")
    kept, content = rounding_samples(run, plan), path.read_bytes()
    path.unlink()
    try:
        assert rounding_samples(run, read_plan(run)).digest() == kept.digest()
        assert planned_splits(plan).rounding.digest() == kept.digest()
    finally:
        path.write_bytes(content)


def test_other_candidates_than_planned_are_refused(planned):
    _, plan = planned
    for chosen in ([0, 1, 2, 3, 4, 5], [10**6]):
        other = dataclasses.replace(plan, balanced={**plan.balanced, "chosen": chosen})
        with pytest.raises(
            UserError, match="gives other samples to fit rounding on than the run was planned"
        ):
            planned_splits(other)


@pytest.mark.parametrize(("values", "words"), [({"balance_experts": False}, "True, the config says False")])
def test_a_changed_key_is_refused(planned, values, words):
    run, plan = planned
    changed = {**to_values(plan.config), "calibration": {**to_values(plan.config)["calibration"], **values}}
    with pytest.raises(PlanMismatch, match=rf"planned with calibration\.balance_experts={words}"):
        prepare(parse_config(changed), run, ())


def test_setting_the_key_on_a_planned_run_is_refused_without_counting(tmp_path, monkeypatch):
    run = RunDir(tmp_path / "run")
    prepare(mixture(tmp_path, balance_experts=False), run, ())
    monkeypatch.setattr(balanced_samples, "routed_tokens", counting_again)
    with pytest.raises(
        PlanMismatch, match=r"planned with calibration\.balance_experts=False, the config says True"
    ):
        prepare(mixture(tmp_path), run, ())


def test_a_plan_without_the_key_has_the_facts_that_it_had(tmp_path):
    _, plan = plan_run(tmp_path, llama(), formats=["int4"])
    assert plan.balanced == {}
    assert not [name for name in plan.facts if "balance" in name]


def codes(run: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.path / "rounded").iterdir()}


def test_codes_are_the_same_bytes_for_any_number_of_workers_and_other_than_without_the_key(planned, tmp_path):
    run, plan = planned
    made = []
    for pool in (InProcess(), LocalPool(2)):
        round_options(run, pool, lambda *_: None)
        made.append(codes(run))
        for name in made[-1]:
            (run.path / "rounded" / name).unlink()
    assert made[0] == made[1] and len(made[0]) == 8
    plain = RunDir(tmp_path / "plain")
    prepare(mixture(tmp_path, balance_experts=False), plain, ())
    round_options(plain, InProcess(), lambda *_: None)
    assert codes(plain).keys() == made[0].keys()
    assert all(codes(plain)[name] != made[0][name] for name in made[0])


def write_letters(path: Path, windows: int) -> None:
    """Text of as many samples, of which none shares any with another."""
    path.write_text("".join(random.Random(0).choices(string.ascii_lowercase, k=64 * windows)))


@pytest.mark.parametrize(("windows", "left"), [(12, 6), (10, 4)])
def test_where_the_data_hold_no_more_than_wanted_all_are_taken_with_a_warning(
    tmp_path, caplog, windows, left
):
    write_letters(tmp_path / "text.txt", windows)
    run = RunDir(tmp_path / "run")
    with caplog.at_level(logging.INFO, "hpcmpq"):
        plan = prepare(mixture(tmp_path, data=str(tmp_path / "text.txt")), run, ())
    assert plan.balanced["num_candidates"] == left == len(rounding_samples(run, plan))
    assert plan.balanced["chosen"] == list(range(left))
    assert f"has no choice: the data hold {left} samples to fit rounding on, and 6 are wanted" in caplog.text


def test_where_the_data_hold_none_the_calibration_samples_are_taken(tmp_path, caplog):
    write_letters(tmp_path / "text.txt", 6)
    run = RunDir(tmp_path / "run")
    plan = prepare(mixture(tmp_path, data=str(tmp_path / "text.txt")), run, ())
    assert plan.balanced == {} and "losses measured on them will be too low" in caplog.text
    assert rounding_samples(run, plan).digest() == planned_splits(plan).calibration.digest()


def evaluated_on_the_same(config: Config, num_samples: int) -> Config:
    return dataclasses.replace(config, evaluation=EvaluationConfig(num_samples=num_samples))


def test_a_run_planned_without_candidates_makes_no_choice_once_there_are_some(tmp_path, monkeypatch):
    """How much is evaluated on is no fact: the second plan leaves what the first one took."""
    write_letters(tmp_path / "text.txt", 14)
    run, config = RunDir(tmp_path / "run"), mixture(tmp_path, data=str(tmp_path / "text.txt"))
    more, fewer = (evaluated_on_the_same(config, count) for count in (8, 2))
    first = prepare(more, run, ())
    assert first.balanced == {} and "calibration.rounding" not in first.facts
    assert len(load_splits(fewer).candidates.samples) == 6
    monkeypatch.setattr(balanced_samples, "routed_tokens", counting_again)
    again = prepare(fewer, run, ())
    assert (again.balanced, again.facts, again.fingerprint) == ({}, first.facts, first.fingerprint)
    kept = read_plan(run)
    assert planned_splits(kept).rounding is None
    assert rounding_samples(run, kept).digest() == planned_splits(kept).calibration.digest()


def test_a_choice_without_the_fact_of_its_samples_is_refused_and_planned_away(tmp_path, monkeypatch):
    write_letters(tmp_path / "text.txt", 14)
    run, config = RunDir(tmp_path / "run"), mixture(tmp_path, data=str(tmp_path / "text.txt"))
    first = prepare(evaluated_on_the_same(config, 8), run, ())
    fewer = evaluated_on_the_same(config, 2)
    wrong = dataclasses.replace(first, config=fewer, balanced={"num_candidates": 6, "chosen": [0, 1]})
    with pytest.raises(UserError, match="gives other samples to fit rounding on than the run was planned"):
        planned_splits(wrong)
    write_artefact(run.plan_path, plan_to_json(wrong))
    assert read_plan(run).balanced == wrong.balanced
    monkeypatch.setattr(balanced_samples, "routed_tokens", counting_again)
    assert prepare(fewer, run, ()).balanced == read_plan(run).balanced == {}


ENDLESS = """
import itertools
import numpy as np

def batches():
    for seed in itertools.count():
        yield np.random.default_rng(seed).integers(0, 256, (3, 64))
"""


def test_of_an_endless_iterator_the_key_changes_no_other_samples(tmp_path):
    """With and without it 2 * (4 + 2 + 2 + 6) samples are read, in threes: 22 are left to choose 6 of."""
    (tmp_path / "endless_batches.py").write_text(ENDLESS)
    with_it, plain = (
        load_splits(
            evaluated_on_the_same(mixture(tmp_path, balance_experts=key, data="endless_batches:batches"), 2),
            (str(tmp_path),),
        )
        for key in (True, False)
    )
    for part in ("calibration", "held_out", "evaluation"):
        assert getattr(with_it, part).content_hashes() == getattr(plain, part).content_hashes()
    candidates = with_it.candidates.samples
    assert len(candidates) == 30 - 8
    assert candidates[:6].content_hashes() == plain.rounding.content_hashes()


def test_without_gptq_the_key_is_refused(tmp_path):
    values = to_values(mixture(tmp_path))
    with pytest.raises(UserError, match=r"set quantizer\.rounding: gptq, or leave it out"):
        parse_config({**values, "quantizer": {"rounding": "nearest"}})


def test_a_model_without_experts_is_refused(tmp_path):
    settings = {"num_samples": 4, "sequence_length": 32, "held_out": 2, "balance_experts": True}
    with pytest.raises(UserError, match="the model has no layers of experts that are known.*; leave it out"):
        plan_run(
            tmp_path, llama(), quantizer={"rounding": "gptq"},
            calibration={**settings, "data": str(tmp_path / "text.txt")},
        )  # fmt: skip


class Experts(nn.ModuleList):
    """Found by what they are called."""


class Layer(nn.Module):
    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.experts = Experts(nn.Linear(4, 4) for _ in range(num_experts))


@pytest.mark.parametrize(("sizes", "refused"), [((2, 3), True), ((3, 3), False)])
def test_layers_of_different_numbers_of_experts_are_refused(tmp_path, sizes: Sequence[int], refused):
    model = nn.Sequential(*map(Layer, sizes))
    config = mixture(tmp_path)
    if not refused:
        check_balance(config, model)
        return
    with pytest.raises(UserError, match="or layers with different numbers of them; leave it out"):
        check_balance(config, model)


def test_routers_that_do_not_choose_are_refused(planned, monkeypatch):
    """They are told apart by the number that they choose among."""
    _, plan = planned
    monkeypatch.setattr(balanced_samples, "num_experts", lambda model: 5)
    candidates = load_splits(plan.config).candidates.samples[:2]
    with pytest.raises(UserError, match="no router of the model was seen to choose"):
        routed_tokens(load_original(plan.config, ()), candidates, plan.space.groups, 2)


def test_samples_of_a_pool_that_was_padded_end_with_the_longest_of_those_chosen():
    mask_NT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    samples = Samples({"input_ids": torch.arange(12).reshape(3, 4), "attention_mask": mask_NT})
    assert SamplePool(samples, padded=True).part([1, 2]).inputs["input_ids"].tolist() == [[4, 5], [8, 9]]
    assert SamplePool(samples).part([1, 2]).inputs["input_ids"].shape == (2, 4)
