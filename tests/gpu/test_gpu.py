"""What a CUDA device computes is what the CPU computes, to its rounding. `bench/gpu.sh` runs these."""

import os

import numpy as np
import pytest
import torch

from hpcmpq.calibrate.neighbourhood import Neighbourhood, around
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.chain.chain import Call
from hpcmpq.models.linear_head import find_linear_head
from hpcmpq.quantizers import encode
from hpcmpq.quantizers.gptq import compensated_codes, compensation
from hpcmpq.quantizers.ranges import choose_qparams
from hpcmpq.response.engine import make_engine
from hpcmpq.rounding.waiting_calls import WaitingCalls
from hpcmpq.sensitivity.features import gram
from hpcmpq.sensitivity.secant import measure
from hpcmpq.settings import SensitivityConfig
from hpcmpq.solvers.on_gpu import TorchPositivePart
from hpcmpq.solvers.proof.positive_part import positive_part
from tests.sensitivity.tiny import make_subject

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> torch.device:
    """The CUDA device; the CPU where a dry run is asked for, which checks that these tests run at all."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("HPCMPQ_DRY_RUN") == "1":
        return torch.device("cpu")
    pytest.skip("needs a CUDA device")


def sums(subject, samples):
    parts = list(measure(subject, samples, range(len(subject.space.groups)), 0))
    quad_PP = sum(gram(phi_RF) for part in parts for phi_RF in part.phi_NRF)
    return np.concatenate([part.increase_NR for part in parts]), quad_PP


def on(device, family, **settings):
    """The same subject on a device."""
    subject, samples = make_subject(family, "kl", dtype=torch.float32, **settings)
    subject.model.to(device)
    return subject, samples.to(device)


@pytest.mark.parametrize("probes", [None, 4])
@pytest.mark.parametrize("engine", ["auto", "whole"])
def test_secants_are_those_of_the_cpu(device, engine, probes):
    results = []
    for place in (torch.device("cpu"), device):
        subject, samples = on(place, "llama", num_probes=probes)
        made = make_engine(engine, subject.variants, samples[:2].inputs)
        results.append(sums(type(subject)(**{**vars(subject), "engine": made}), samples))
    for found, expected in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 * np.abs(expected).max())


def test_secants_before_the_head_are_those_of_the_cpu(device):
    results = []
    for place in (torch.device("cpu"), device):
        subject, samples = on(place, "llama", num_probes=4)
        head = find_linear_head(subject.model, samples[:1].inputs)
        settings = {**vars(subject), "head": head, "loss_positions": "all"}
        results.append(sums(type(subject)(**settings), samples))
    for found, expected in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 * np.abs(expected).max())


def test_expansions_are_those_of_the_cpu(device):
    results = []
    for place in (torch.device("cpu"), device):
        subject, samples = on(place, "llama")
        space = subject.space
        assignment = {group.name: space.formats[g][g % 3] for g, group in enumerate(space.groups)}
        options = [
            p for p, o in enumerate(space.options) if assignment[space.groups[o.group].name] != o.format
        ]
        beside = Neighbourhood(assignment, tuple(options))
        results.append(sums(around(subject, beside, SensitivityConfig(), samples[:2].inputs), samples))
    for found, expected in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["int2", "int4", "int8"])
def test_codes_are_those_of_the_cpu(device, name):
    generator = torch.Generator().manual_seed(0)
    weight_MK = torch.randn(24, 128, generator=generator)
    inputs_NK = torch.randn(400, 128, generator=generator, dtype=torch.float64)
    quantizer = Quantizer(group_size=32, symmetric=True, range="mse", rounding="gptq")
    results = []
    for place in (torch.device("cpu"), device):
        own_MK, own_NK = weight_MK.to(place), inputs_NK.to(place)
        chosen = choose_qparams(own_MK, FORMATS[name], quantizer)
        factor = compensation(own_NK.T @ own_NK, quantizer)
        codes = compensated_codes(own_MK, factor, chosen, FORMATS[name], quantizer)
        results.append(
            (chosen.scale.cpu(), encode(own_MK, chosen, FORMATS[name], quantizer).cpu(), codes.cpu())
        )
    for found, expected in zip(results[1], results[0], strict=True):
        assert float((found != expected).double().mean()) < 0.01


def test_a_step_of_the_solver_projects_as_on_the_host(device):
    draws = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    parts = []
    for way in (positive_part, TorchPositivePart(device.type, least_rows=1)):
        eigenvalue_r, vector_nr = way(draws + draws.T, 0)
        parts.append((vector_nr * eigenvalue_r) @ vector_nr.T)
    np.testing.assert_allclose(parts[1], parts[0], rtol=0, atol=1e-4 * np.abs(parts[0]).max())


def test_what_blocks_are_given_waits_on_the_host_and_comes_back(device: torch.device):
    waiting, on_host = WaitingCalls(), torch.ones(2, 2)
    given = {"mask": torch.ones(2, 2, device=device), "nested": ({"on_host": on_host}, 3)}
    waiting.append((Call((None,), given, 0),))
    assert {kept.tensor.device.type for kept in waiting._last} == {"cpu"}
    back = waiting.call(0, 0).kwargs
    assert back["mask"].device.type == device.type and torch.equal(back["mask"], given["mask"])
    assert back["nested"][0]["on_host"].device.type == "cpu" and back["nested"][1] == 3
