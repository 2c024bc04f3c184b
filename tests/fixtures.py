"""What tests in any folder ask for: models in memory or saved as Hugging Face directories, commands, launchers."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from hpcmpq.models.load import quiet_transformers
from tests.calling import call  # noqa: F401  (a fixture)
from tests.executors.tiny_run import reference  # noqa: F401  (a fixture)
from tests.ray_cluster import ray_cluster  # noqa: F401  (a fixture)
from tests.started_once import serving
from tests.tiny_models import MODELS, VOCAB


@pytest.fixture(autouse=True)
def log_only_during_the_test() -> Iterator[None]:
    """What a command called here made of logging ends with its test: its stream is closed then."""
    level = logging.root.level
    yield
    for handler in [handler for handler in logging.root.handlers if type(handler) is logging.StreamHandler]:
        logging.root.removeHandler(handler)
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def started_once() -> Iterator[str]:
    """A script that does what `hpcmpq` does, without reading libraries each time; see `tests/started_once.py`."""
    with serving() as script:
        yield script


@pytest.fixture
def tiny_model() -> Callable[[str], nn.Module]:
    """Function from a name in `MODELS` to a model with seeded random weights, as `load_model` leaves it."""

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        with quiet_transformers():
            return MODELS[name]().eval().requires_grad_(False)

    return make


@pytest.fixture
def model_directory(tiny_model: Callable[[str], nn.Module], tmp_path: Path) -> Callable[[str], Path]:
    """Function from the name of a transformers model to a directory it is saved in."""

    def save(name: str) -> Path:
        path = tmp_path / name
        with quiet_transformers():
            tiny_model(name).save_pretrained(path)
        return path

    return save


@pytest.fixture
def tiny_inputs() -> Callable[[str], dict[str, torch.Tensor]]:
    """Function from a name in `MODELS` to inputs of three samples."""

    def make(name: str) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        if name == "vit":
            return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
        if name == "cnn":
            return {"input": torch.randn(3, 1, 8, 8, generator=generator)}
        return {"input_ids": torch.randint(VOCAB, (3, 10), generator=generator)}

    return make
