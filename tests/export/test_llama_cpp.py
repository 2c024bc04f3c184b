"""The GGUF file runs in llama.cpp itself, where llama-cpp-python is installed."""

import numpy as np
import pytest
import torch

from hpcmpq.export import export
from tests.export.planned import llama, plan_run, qwen2, solve_by_turns
from tests.export.test_round_trips import GGUF, fake_quantized_logits, tokens


@pytest.mark.parametrize("make", [llama, qwen2])
def test_llama_cpp_gives_the_fake_quantized_models_outputs(tmp_path, make):
    """To the precision of its kernels, which round inputs to 8 bits: about 1 % of the spread of the logits."""
    reason = "needs llama-cpp-python, which is built from source in about ten minutes"
    llama_cpp = pytest.importorskip("llama_cpp", reason=reason)
    run, plan = plan_run(tmp_path, make(), target="llama_cpp", formats=GGUF, quantizer={"group_size": 32})
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
