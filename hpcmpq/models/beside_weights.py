"""What lies beside the weights of a model and belongs to it: tokenizers, templates, licences."""

import logging
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

log = logging.getLogger(__name__)

BESIDE_WEIGHTS = (
    "config.json", "generation_config.json", "*.py",  # what the model computes and how it generates
    "tokenizer*.json", "tokenizer*.model", "special_tokens_map.json", "added_tokens.json", "vocab*.json",
    "vocab*.txt", "merges.txt", "spiece.model", "sentencepiece*.model", "source.spm", "target.spm", "*.tiktoken",
    "spm*.model", "tiktoken.model", "prophetnet.tokenizer", "*_vocab.json", "byte_maps.json", "emoji.json",
    "word_pronunciation.json", "word_shape.json",
    "tekken.json", "bpe.codes", "dict.txt", "normalizer.json", "chat_template*.jin*", "chat_template.json",
    "*processor_config.json", "preprocessor_config.json",  # images and sound
    "modules.json", "config_sentence_transformers.json", "sentence_*_config.json",
    "LICEN[CS]E*", "NOTICE*", "USE_POLICY*", "README*",
)  # fmt: skip
"""Names of the files that an export takes along, and the model in plain numbers of one that came quantized. Whatever
else lies there stays: other frameworks' weights, run directories, checkpoints of training."""

SUBDIRECTORIES = {
    "additional_chat_templates": ("*.jinja",),
    "[0-9]*_*": ("config.json", "model.safetensors", "pytorch_model.bin"),
}
"""Folders of which files are taken along: chat templates by name, and the later modules of sentence encoders."""


def copy_small_files(model_directory: str, attempt: Path, but: tuple[str, ...] = ()) -> None:
    """Copy what `BESIDE_WEIGHTS` and `SUBDIRECTORIES` name, and say what else but weights is not.

    Args:
        model_directory: Where from.
        attempt: Where to.
        but: Names of files that are written otherwise.
    """
    left_out = []
    for path in sorted(Path(model_directory).iterdir()):
        if path.name in but:
            continue
        names = [names for pattern, names in SUBDIRECTORIES.items() if fnmatchcase(path.name, pattern)]
        if path.is_dir() and names:
            for file in sorted(path.iterdir()):
                if file.is_file() and _is_named(file, names[0]):
                    (attempt / path.name).mkdir(exist_ok=True)
                    shutil.copyfile(file, attempt / path.name / file.name)
        elif path.is_file() and _is_named(path, BESIDE_WEIGHTS):
            shutil.copyfile(path, attempt / path.name)
        elif not _is_named(path, ("*.safetensors", "*.safetensors.index.json", ".*")):
            left_out.append(path.name + "/" * path.is_dir())
    if left_out:
        shown = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else "")
        log.info("not copied from %s: %s", model_directory, shown)


def _is_named(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in patterns)
