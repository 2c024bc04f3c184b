"""GGUF files in llama.cpp itself, where llama-cpp-python is installed; `bench.engines` keeps it in an environment."""

import numpy as np
import pytest
import torch

from hpcmpq.export import export
from hpcmpq.export.gguf_blocks import to_blocks
from hpcmpq.export.gguf_super_blocks import to_super_blocks
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.quantizers import choose_qparams, decode, encode
from hpcmpq.targets.llama_cpp import GGUF_TYPES
from tests.export.planned import llama, plan_run, qwen2, solve_by_turns
from tests.export.test_round_trips import GGUF, fake_quantized_logits, tokens

QUANTIZER = Quantizer(group_size=32, scales="float16")


@pytest.fixture
def llama_cpp(monkeypatch):
    """The package, with weights left as they lie in files: repacked for AMX they stop a process where it is masked."""
    reason = "needs llama-cpp-python, which is built from source in about ten minutes"
    package = pytest.importorskip("llama_cpp", reason=reason)
    defaults = package.llama_model_default_params()
    defaults.use_extra_bufts = False
    monkeypatch.setattr(package.llama_cpp, "llama_model_default_params", lambda: defaults)
    return package


@pytest.mark.parametrize("name", [name for name in GGUF_TYPES if FORMATS[name].scaled])
def test_ggml_decodes_the_bytes_to_the_weights_that_are_measured(llama_cpp, name):
    weight_MK = torch.randn(12, 512, generator=torch.Generator().manual_seed(0))
    weight_MK *= torch.logspace(-3, 1, 12)[:, None]
    weight_MK[3], weight_MK[4, :256], weight_MK[5, 7] = 0.0, 0.0, -40.0
    format = FORMATS[name]
    qparams = choose_qparams(weight_MK, format, QUANTIZER)
    codes_MK = encode(weight_MK, qparams, format, QUANTIZER)
    if format.type == "ggml":
        blocks = to_super_blocks(codes_MK, qparams, format)
    else:
        blocks = to_blocks(codes_MK, qparams.scale, format.num_bits)
    from bench.engines.run_llama_cpp import decoded_row

    decoded_MK = decoded_row(GGUF_TYPES[name], blocks, weight_MK.numel()).reshape(weight_MK.shape)
    assert np.array_equal(decoded_MK, decode(codes_MK, qparams, format, QUANTIZER).numpy())


@pytest.mark.parametrize("make", [llama, qwen2])
def test_llama_cpp_gives_the_fake_quantized_models_outputs(llama_cpp, tmp_path, make):
    """To the precision of its kernels, which round inputs to 8 bits: about 1 % of the spread of the logits."""
    config = {"formats": [*GGUF, "iq4_nl", "q4_1", "q5_1"], "groups": {"include": ["*"]}}
    run, plan = plan_run(tmp_path, make(), target="llama_cpp", quantizer={"group_size": 32}, **config)
    assignment = solve_by_turns(run, plan)
    export(run, "gguf")
    expected_NTV = fake_quantized_logits(run, plan, assignment)
    engine = llama_cpp.Llama(
        str(run.path / "exports" / "gguf" / "model.gguf"),
        logits_all=True,
        n_ctx=64,
        n_threads=1,
        verbose=False,
    )
    try:
        for tokens_T, expected_TV in zip(tokens(), expected_NTV, strict=True):
            engine.reset()
            engine.eval(tokens_T.tolist())
            found_TV = torch.from_numpy(np.array(engine.scores[: len(tokens_T)]))
            difference = float((found_TV - expected_TV).std() / expected_TV.std())
            print(f"{make.__name__}: difference {difference:.2%} of the logits' spread")
            assert difference < 0.02
    finally:
        engine.close()
