"""Small random models of the families that chain discovery must know, with inputs."""

import torch
from torch import Tensor, nn

from hpcmpq.models.searchable_layers import plain_experts


class Residual(nn.Module):
    """Two residual branches of functional code between convolutions, as CNNs have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.output = nn.Linear(4, 10)

    def forward(self, input: Tensor) -> Tensor:
        x = self.stem(input).relu()
        x = (x + self.norm(self.second(self.first(x).relu()))).relu()
        return self.output(x.mean((2, 3)))


class Aliased(nn.Module):
    """Blocks in which two layers lie under a second name, in a list that runs them."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
            self.both = nn.Sequential(self.up, nn.ReLU(), self.down)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.both(x) if x.shape[-1] == 6 else x  # a condition that no graph holds

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.Block() for _ in range(3))
        self.output = nn.Linear(6, 5)

    def forward(self, input: Tensor) -> Tensor:
        for layer in self.layers:
            input = layer(input)
        return self.output(input)


class Standardized(nn.Conv2d):
    """Multiplies by another weight than its own."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Scaled(nn.Linear):
    """Does more than multiply."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(3 * x.tanh()) + x.mean(-1, keepdim=True)


class Attending(nn.Module):
    """torch's own attention, whose weights are used past their layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.output = nn.Linear(16, 5)

    def forward(self, input: Tensor) -> Tensor:
        return self.output(self.encoder(input))


class Skipping(nn.Module):
    """Not a chain: the last layer reads what the first one made."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, input: Tensor) -> Tensor:
        first = self.layers[0](input).tanh()
        second = self.layers[1](first + float(input.sum() > 1e9)).tanh()
        return self.layers[2](second * first)


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model in eval mode and inputs of three samples."""
    import transformers as t

    torch.manual_seed(sum(map(ord, name)))
    size = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    grouped = dict(size, num_key_value_heads=1, head_dim=8)
    tokens = {"input_ids": torch.randint(1, 50, (3, 7))}
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 5:] = 0
    padded = {**tokens, "attention_mask": mask}
    image = {"pixel_values": torch.randn(3, 3, 8, 8, dtype=dtype)}
    small = {"input": torch.rand(3, 1, 8, 8, dtype=dtype)}
    experts = dict(grouped, num_local_experts=3, num_experts_per_tok=2)
    bloom = t.BloomConfig(hidden_size=16, n_layer=3, n_head=2, vocab_size=50)
    gptj = t.GPTJConfig(n_embd=16, n_layer=3, n_head=2, rotary_dim=4, vocab_size=50, n_positions=16)
    sizes = {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in
             {"layers": 2, "attention_heads": 2, "ffn_dim": 24}.items()}  # fmt: skip
    bart = t.BartConfig(d_model=16, vocab_size=50, max_position_embeddings=16, **sizes)
    gpt2 = t.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=50)
    seen = {**size, "image_size": 8, "patch_size": 4}
    del seen["vocab_size"]
    vit = t.ViTConfig(**seen)
    llava = t.LlavaConfig(
        text_config=t.LlamaConfig(**grouped), vision_config=t.CLIPVisionConfig(**seen), image_token_id=49
    )
    builders = {
        "llama": lambda: (t.LlamaForCausalLM(t.LlamaConfig(**grouped)), tokens),
        "qwen3": lambda: (t.Qwen3ForCausalLM(t.Qwen3Config(**grouped, tie_word_embeddings=True)), tokens),
        "gemma2": lambda: (t.Gemma2ForCausalLM(t.Gemma2Config(**grouped, sliding_window=4)), tokens),
        "gpt2": lambda: (t.GPT2LMHeadModel(gpt2), tokens),
        "gptj": lambda: (t.GPTJForCausalLM(gptj), tokens),
        "bloom": lambda: (t.BloomForCausalLM(bloom), tokens),
        "mixtral": lambda: (t.MixtralForCausalLM(t.MixtralConfig(**experts)), tokens),
        "gpt_oss": lambda: (t.GptOssForCausalLM(t.GptOssConfig(**experts, sliding_window=4)), tokens),
        "attending": lambda: (Attending(), {"input": torch.randn(3, 7, 16, dtype=dtype)}),
        "llava": lambda: (t.LlavaForConditionalGeneration(llava), tokens),
        "bart": lambda: (
            t.BartForConditionalGeneration(bart),
            {**padded, "decoder_input_ids": tokens["input_ids"]},
        ),
        "bert": lambda: (t.BertModel(t.BertConfig(**size)), padded),
        "bert_mlm": lambda: (t.BertForMaskedLM(t.BertConfig(**size)), padded),
        "vit": lambda: (t.ViTForImageClassification(vit), image),
        "sequential": lambda: (
            nn.Sequential(
                nn.Conv2d(1, 4, 3),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(4, 4, 2),
                nn.Flatten(),
                nn.Linear(16, 5),
            ),
            small,
        ),
        "residual": lambda: (Residual(), small),
        "own_forward": lambda: (
            nn.Sequential(Standardized(1, 4, 3), nn.Tanh(), nn.Flatten(), Scaled(144, 8), nn.Linear(8, 5)),
            small,
        ),
        "aliased": lambda: (Aliased(), {"input": torch.randn(3, 6, dtype=dtype)}),
        "skipping": lambda: (Skipping(), {"input": torch.randn(3, 6, dtype=dtype)}),
    }
    model, inputs = builders[name]()
    if dtype == torch.float64:
        plain_experts(model)
    return model.eval().requires_grad_(False).to(dtype), inputs


CHAINS = (
    *("llama", "qwen3", "gemma2", "gpt2", "gptj", "mixtral", "gpt_oss", "llava"),
    *("bart", "bert", "bert_mlm", "vit", "sequential", "residual", "attending", "aliased", "own_forward"),
)
