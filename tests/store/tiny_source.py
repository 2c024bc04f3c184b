"""What small runs of these tests are made of: a tiny model and a text."""

from pathlib import Path

import torch

from hpcmpq.models.load import quiet_transformers
from tests.tiny_models import llama


def sentences(numbers: range) -> str:
    """A text whose sentences differ."""
    return "".join(f"{n} bottles of ink on shelf {n % 7}. " for n in numbers)


def save_source(place: Path, num_sentences: int) -> None:
    """Write the tiny llama to `model` and a text to `text.txt`, the same each time."""
    torch.manual_seed(0)
    with quiet_transformers():
        llama().save_pretrained(place / "model")
    (place / "text.txt").write_text(sentences(range(num_sentences)))
