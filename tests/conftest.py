"""Tiny random models, in memory or saved as Hugging Face directories; nothing is ever fetched."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bytecode import kept_bytecode

os.environ.update(kept_bytecode())
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is there: on tiny tensors a second thread is only waited for, and two tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
import transformers
from torch import nn

from hpcmpq.models.load import quiet_transformers
from tests.calling import call  # noqa: F401  (a fixture)
from tests.executors.tiny_run import reference  # noqa: F401  (a fixture)
from tests.ray_cluster import ray_cluster  # noqa: F401  (a fixture)
from tests.side_by_side import (  # noqa: F401  (hooks)
    pytest_collection_modifyitems,
    pytest_configure_node,
    pytest_runtest_teardown,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
)
from tests.started_once import serving

# Nothing that an earlier run found, and nothing about time.
hypothesis.settings.register_profile("fresh", database=None, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fresh")
hypothesis.settings.register_profile(
    "quick", parent=hypothesis.settings.get_profile("fresh"), max_examples=20
)


def pytest_configure(config: pytest.Config) -> None:
    """Quick tests look at fewer examples, unless a test says how many."""
    if config.getoption("markexpr") == "quick":
        hypothesis.settings.load_profile("quick")


VOCAB = 256


def llama() -> nn.Module:
    """Byte vocabulary, two blocks of seven linear layers, untied head."""
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def gpt2() -> nn.Module:
    """Conv1D layers, whose weights are transposed, and a head tied to the embedding."""
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def _bert_config() -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, num_labels=3,
    )  # fmt: skip


def bert() -> nn.Module:
    """A plain encoder, with a pooler that its last hidden state does not depend on."""
    return transformers.BertModel(_bert_config())


def bert_masked() -> nn.Module:
    """A masked language model."""
    return transformers.BertForMaskedLM(_bert_config())


def bert_classifier() -> nn.Module:
    """A sequence classifier of three classes."""
    return transformers.BertForSequenceClassification(_bert_config())


def vit() -> nn.Module:
    """An image classifier of four classes, 16 × 16 pixels."""
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16,
            patch_size=8, num_labels=4,
        )
    )  # fmt: skip


def cnn() -> nn.Module:
    """Two convolutions, one of them grouped, and a linear head: [N, 1, 8, 8] to [N, 5]."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 9, 5),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    make.__name__: make for make in (llama, gpt2, bert, bert_masked, bert_classifier, vit, cnn)
}


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
