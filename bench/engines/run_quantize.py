"""llama.cpp's own quantizer with its presets; runs where llama-cpp-python is installed.

    python run_quantize.py JOB.json ANSWER.json

JOB: {"input": a GGUF file in float32, "outputs": {preset, as llama-quantize names it: a path to write}}.
ANSWER: {preset: {type of ggml: tensors that have it}}.
"""

import collections
import json
import sys
from pathlib import Path

import gguf
import llama_cpp


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = {}
    for preset, path in job["outputs"].items():
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{preset}")
        settings.nthread = 1
        failed = llama_cpp.llama_model_quantize(job["input"].encode(), path.encode(), settings)
        if failed:
            raise RuntimeError(f"llama_model_quantize says {failed} for {preset}")
        types = collections.Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors)
        answer[preset] = dict(types)
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
