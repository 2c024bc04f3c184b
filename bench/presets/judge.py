"""One judge of all files: what llama.cpp computes from them, and what their weights do in float32.

Its formulas are its own and share no code with what it judges. Axis letters: N samples, T positions, V tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.environments import answer
from bench.peers.texts import source_code
from hpcmpq.examples.topics import evaluation_text
from hpcmpq.store.json_files import read_json, write_json

TEXTS = {"the language reference": evaluation_text, "Python's source code": source_code}
"""Neither is calibrated on; the first continues what is."""


@dataclass(frozen=True)
class Judged:
    """Of a file and a text.

    Attributes:
        kl_N: KL of the original to it, mean of a sample's positions, nats.
        ce_N: -log probability of the next token.
    """

    kl_N: np.ndarray
    ce_N: np.ndarray

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.ce_N.mean()))


@dataclass(frozen=True)
class Judge:
    """Judges GGUF files against an original.

    Attributes:
        folder: Where samples and answers are kept.
        original: A Hugging Face directory in float32.
        python: That has llama-cpp-python.
        num_samples: Of each text.
        num_tokens: Of a sample.
    """

    folder: Path
    original: Path
    python: Path
    num_samples: int
    num_tokens: int

    def prepare(self) -> None:
        """Samples and the original's logits."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._expected.exists():
            return
        tokenizer = AutoTokenizer.from_pretrained(self.original)
        samples_NT = np.concatenate([self._samples(tokenizer, text()) for text in TEXTS.values()])
        np.save(self._samples_path, samples_NT)
        model = AutoModelForCausalLM.from_pretrained(self.original, dtype=torch.float32).eval()
        found_NTV = np.stack([_logits(model, ids_T) for ids_T in samples_NT])
        np.save(self._expected, found_NTV)

    def _samples(self, tokenizer: object, text: str) -> np.ndarray:
        """Windows spread evenly over a text, int64 [N, T]."""
        ids = np.array(tokenizer(text)["input_ids"], np.int64)  # type: ignore[operator]
        windows = ids[: len(ids) // self.num_tokens * self.num_tokens].reshape(-1, self.num_tokens)
        return windows[np.linspace(0, len(windows) - 1, self.num_samples).astype(int)]

    def unquantized(self) -> dict[str, Judged]:
        """{text: the original itself}."""
        samples_NT, exact_NTV = np.load(self._samples_path), np.load(self._expected, mmap_mode="r")
        found = [
            _compared(np.array(z_TV), z_TV, ids_T) for z_TV, ids_T in zip(exact_NTV, samples_NT, strict=True)
        ]
        return self._by_text([kl for kl, _ in found], [ce for _, ce in found])

    def by_llama_cpp(self, files: Mapping[str, Path]) -> dict[str, dict[str, Judged]]:
        """{file: {text: what llama.cpp computes from it, on one thread, keys and values in float32}}."""
        missing = {name: path for name, path in files.items() if not self._answer(name, "llama_cpp").exists()}
        for name, path in missing.items():  # one by one: what is done stays done
            folder = self.folder / "llama_cpp"
            folder.mkdir(exist_ok=True)
            job = {
                "decode": [],
                "samples": str(self._samples_path),
                "expected": str(self._expected),
                "files": [str(path)],
            }
            program = Path(__file__).parents[1] / "engines" / "run_llama_cpp.py"
            [said] = answer(self.python, program, folder, job)["files"]
            write_json(self._answer(name, "llama_cpp"), {"kl": said["kl"], "ce": said["ce"]})
        return {name: self._read(name, "llama_cpp") for name in files}

    def by_weights(self, files: Mapping[str, Path]) -> dict[str, dict[str, Judged]]:
        """{file: {text: transformers in float32 on the weights that it holds}}."""
        samples_NT, exact_NTV = np.load(self._samples_path), np.load(self._expected, mmap_mode="r")
        for name, path in files.items():
            if self._answer(name, "weights").exists():
                continue
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            ).eval()
            found = [
                _compared(_logits(model, ids_T), exact_TV, ids_T)
                for ids_T, exact_TV in zip(samples_NT, exact_NTV, strict=True)
            ]
            values = {"kl": [kl for kl, _ in found], "ce": [ce for _, ce in found]}
            write_json(self._answer(name, "weights"), values)
        return {name: self._read(name, "weights") for name in files}

    def _read(self, name: str, how: str) -> dict[str, Judged]:
        said = read_json(self._answer(name, how), "python -m bench.presets")
        return self._by_text(said["kl"], said["ce"])

    def _by_text(self, kl: Sequence[float], ce: Sequence[float]) -> dict[str, Judged]:
        parts = [slice(k * self.num_samples, (k + 1) * self.num_samples) for k in range(len(TEXTS))]
        return {
            text: Judged(np.array(kl[part]), np.array(ce[part]))
            for text, part in zip(TEXTS, parts, strict=True)
        }

    @property
    def _samples_path(self) -> Path:
        return self.folder / "samples.npy"

    @property
    def _expected(self) -> Path:
        return self.folder / "expected.npy"

    def _answer(self, name: str, how: str) -> Path:
        return self.folder / f"{name}-{how}.json"


@torch.no_grad()
def _logits(model: torch.nn.Module, ids_T: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(ids_T)[None]).logits[0].float().numpy()


def _compared(found_TV: np.ndarray, exact_TV: np.ndarray, ids_T: np.ndarray) -> tuple[float, float]:
    """KL and cross-entropy of a sample, means over its positions."""
    log_TV, true_TV = _log(found_TV), _log(np.array(exact_TV))
    kl = float((true_TV.exp() * (true_TV - log_TV)).sum(1).mean())
    next_T = torch.from_numpy(ids_T[1:])
    return kl, float(-log_TV[:-1].gather(1, next_T[:, None]).mean())


def _log(logits_TV: np.ndarray) -> Tensor:
    return torch.log_softmax(torch.from_numpy(logits_TV).double(), -1)
