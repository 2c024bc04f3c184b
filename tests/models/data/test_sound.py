"""Models of sound are planned from their directories: waveforms and spectra go to the argument that is theirs."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from hpcmpq.config import read_config
from hpcmpq.errors import UserError
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.description import describe_model
from hpcmpq.models.load import load_model, quiet_transformers
from hpcmpq.models.outputs import forward
from hpcmpq.planning.starter import write_starter

WAVE = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32,
    "conv_dim": [8], "conv_stride": [5], "conv_kernel": [10], "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "num_labels": 3,
}  # fmt: skip
SPECTRUM = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_mel_bins": 16,
    "max_length": 16, "patch_size": 4, "frequency_stride": 4, "time_stride": 4, "num_labels": 3,
}  # fmt: skip
KINDS = {
    "Wav2Vec2Model": "encoder",
    "Wav2Vec2ForSequenceClassification": "audio_classifier",
    "Wav2Vec2ForCTC": "ctc",
    "ASTForAudioClassification": "audio_classifier",
}


def saved(folder: Path, architecture: str) -> tuple[Path, nn.Module]:
    made = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = made(made.config_class(**(SPECTRUM if architecture.startswith("AST") else WAVE)))
    with quiet_transformers():
        model.save_pretrained(folder / "model")
    return folder / "model", model.eval()


def sounds(architecture: str, count: int = 16) -> np.ndarray:
    shape = (count, 16, 16) if architecture.startswith("AST") else (count, 100)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("architecture", KINDS)
@torch.no_grad()
def test_what_init_writes_reads_an_array_of_sound(tmp_path, architecture):
    path, model = saved(tmp_path, architecture)
    np.save(tmp_path / "sounds.npy", sounds(architecture))
    groups = write_starter(path, tmp_path / "config.yaml", str(tmp_path / "sounds.npy"))
    assert any("attention" in group.name for group in groups)
    config = read_config(tmp_path / "config.yaml")
    assert describe_model(config.model).kind == KINDS[architecture]
    calibration = load_splits(config).calibration
    assert list(calibration.inputs) == ["input_values"]
    result = model(calibration.inputs["input_values"])
    expected = result.last_hidden_state if architecture.endswith("Model") else result.logits
    expected_NTV = expected[:, None] if expected.ndim == 2 else expected
    torch.testing.assert_close(forward(load_model(config.model), calibration.inputs), expected_NTV)


def test_sound_of_several_lengths_is_refused_where_outputs_are_per_position(tmp_path):
    path, _ = saved(tmp_path, "Wav2Vec2ForCTC")
    mask = np.ones((16, 100), dtype=np.int64)
    mask[3, 60:] = 0
    np.savez(tmp_path / "padded.npz", input_values=sounds("Wav2Vec2ForCTC"), attention_mask=mask)
    with pytest.raises(
        UserError, match="pads sound, and which outputs .* cut the samples to one length, and leave"
    ):
        write_starter(path, tmp_path / "config.yaml", str(tmp_path / "padded.npz"))


def test_text_is_no_sound(tmp_path):
    path, _ = saved(tmp_path, "Wav2Vec2ForCTC")
    (tmp_path / "text.txt").write_text("a text\n" * 50)
    with pytest.raises(UserError, match="is text, which this model does not read; give .npy or .npz arrays"):
        write_starter(path, tmp_path / "config.yaml", str(tmp_path / "text.txt"))
