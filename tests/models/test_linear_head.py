"""A head counts as linear only where logits are exactly what it makes of its input, times a number."""

import pytest
import torch
from torch import nn

from hpcmpq.models.linear_head import find_linear_head
from hpcmpq.models.outputs import forward
from tests.models_of_many_kinds import make


def language_model(family: str, **settings):
    import transformers as t

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 50, "pad_token_id": 0}  # fmt: skip
    config = getattr(t, f"{family}Config")(**shape, **settings)
    model = getattr(t, f"{family}ForCausalLM")(config).double().eval().requires_grad_(False)
    return model, {"input_ids": torch.randint(1, 50, (2, 5))}


class Behind(nn.Module):
    """A linear layer and something behind it."""

    def __init__(self, behind, bias=True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.behind = nn.Linear(4, 6), nn.Linear(6, 9, bias=bias), behind
        self.double().eval().requires_grad_(False)

    def forward(self, input):
        return self.behind(self.last(torch.tanh(self.first(input))))


POINTS = {"input": torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 3, 4)}


@pytest.mark.parametrize("case", ["llama", "granite", "cohere", "bert", "t5-like", "biased", "images"])
def test_outputs_without_the_head_give_the_logits(case):
    model, inputs = {
        "llama": lambda: make("llama"),
        "granite": lambda: language_model("Granite", logits_scaling=8.0),
        "cohere": lambda: language_model("Cohere", logit_scale=0.25),
        "bert": lambda: make("bert_mlm"),
        "t5-like": lambda: (Behind(lambda z: z, bias=False), POINTS),
        "biased": lambda: (Behind(lambda z: -3.0 * z), POINTS),
        "images": lambda: make("residual"),
    }[case]()
    head = find_linear_head(model, inputs)
    assert head is not None
    z_NTV = forward(model, inputs)
    with head.left_out():
        before_NTD = forward(model, inputs)
    assert before_NTD.shape == (*z_NTV.shape[:2], head.weight.shape[1])
    torch.testing.assert_close(head.logits(before_NTD), z_NTV, rtol=1e-9, atol=1e-10)
    assert torch.equal(forward(model, inputs), z_NTV)


@pytest.mark.parametrize(
    "behind",
    [
        lambda z: 30 * torch.tanh(z / 30),
        lambda z: z.masked_fill(torch.arange(9) > 7, -1e4),
        lambda z: z.softmax(-1),
        lambda z: z.flip(-1),
        lambda z: z.clamp(-40, 40),
        lambda z: torch.cat([z, z], -1),
    ],
    ids=["soft cap", "mask", "softmax", "order", "clamp", "twice"],
)
def test_anything_else_behind_the_head_rules_it_out(behind):
    assert find_linear_head(Behind(behind), POINTS) is None


def test_a_soft_cap_far_above_the_logits_rules_the_head_out_too():
    model, inputs = language_model("Gemma2", final_logit_softcapping=1e6)
    assert float(forward(model, inputs).abs().max()) < 10
    assert find_linear_head(model, inputs) is None
    uncapped, inputs = language_model("Gemma2", final_logit_softcapping=None)
    assert find_linear_head(uncapped, inputs) is not None


def test_a_model_without_a_head_or_that_counts_on_its_size_has_none():
    assert find_linear_head(*make("bert")) is None
    assert find_linear_head(*make("bloom")) is not None
    assert find_linear_head(Behind(lambda z: z.reshape(-1, 3, 9)), POINTS) is None


def test_a_layer_that_runs_twice_is_no_head():
    model = Behind(lambda z: z)
    model.first = nn.Linear(4, 9).double()
    model.last = nn.Linear(9, 9).double()
    model.behind = model.last
    assert find_linear_head(model, POINTS) is None


def test_weights_shared_with_the_embedding_change_the_head():
    model, inputs = language_model("Llama", tie_word_embeddings=True)
    head = find_linear_head(model, inputs)
    assert head is not None
    assert head.is_changed_by(model, ["model.embed_tokens.weight"])
    assert not head.is_changed_by(model, ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
