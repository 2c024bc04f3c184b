"""Loading models, and what is said when that fails."""

import json
import socket
import sys

import pytest
import torch
from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.models.description import describe_model
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import forward, load_model, pick_device, resolve_factory
from hpcmpq.models.quantized_form import form_of
from hpcmpq.models.repeatable import check_repeatable
from hpcmpq.models.weight_digests import weights_fingerprint
from hpcmpq.settings import GroupsConfig, ModelConfig
from tests.models_of_many_kinds import make

DIRECTORIES = ["llama", "gpt2", "bert", "bert_masked", "bert_classifier", "vit"]
OUTPUTS = {
    "llama": (3, 10, 256),
    "gpt2": (3, 10, 256),
    "bert": (3, 10, 16),
    "bert_masked": (3, 10, 256),
    "bert_classifier": (3, 1, 3),
    "vit": (3, 1, 4),
    "cnn": (3, 1, 5),
}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_directory_gives_the_same_model_without_network_or_chatter(
    name, model_directory, tiny_model, tiny_inputs, no_network, capfd
):
    path = model_directory(name)
    capfd.readouterr()
    model = load_model(ModelConfig(path=str(path), device="cpu"))
    assert capfd.readouterr() == ("", "")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    z_NTV = forward(model, tiny_inputs(name))
    assert z_NTV.shape == OUTPUTS[name]
    assert torch.equal(z_NTV, forward(tiny_model(name), tiny_inputs(name)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtype_is_the_configured_one(model_directory, tiny_inputs, dtype: str):
    model = load_model(ModelConfig(path=str(model_directory("llama")), dtype=dtype, device="cpu"))
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert forward(model, tiny_inputs("llama")).dtype == getattr(torch, dtype)


def test_eager_attention_on_request(model_directory):
    config = ModelConfig(path=str(model_directory("llama")), device="cpu")
    assert load_model(config).config._attn_implementation != "eager"
    assert load_model(config, attention="eager").config._attn_implementation == "eager"


def test_encoder_saved_without_its_pooler_loads(model_directory, tiny_model, tiny_inputs):
    from safetensors.torch import load_file, save_file

    path = model_directory("bert")
    weights = load_file(path / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "pooler" not in key}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    model = load_model(ModelConfig(path=str(path), device="cpu"))
    assert torch.equal(forward(model, tiny_inputs("bert")), forward(tiny_model("bert"), tiny_inputs("bert")))


def fails(path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model(ModelConfig(path=str(path), device="cpu"))
    assert "\n" not in str(caught.value)


def test_missing_directory(tmp_path):
    fails(tmp_path / "nowhere", "there is no model directory .*nowhere; correct model.path")


def test_directory_without_config(tmp_path):
    fails(tmp_path, "is not a Hugging Face model directory: it has no config.json")


@pytest.mark.parametrize("beside_base", [True, False], ids=["beside a base model", "alone"])
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_not_left_out_without_a_word(model_directory, tmp_path, file, beside_base):
    path = model_directory("llama") if beside_base else tmp_path
    (path / file).write_text("{}")
    with pytest.raises(UserError, match=rf"{file} belongs to an adapter.*merge_and_unload\(\)"):
        describe_model(ModelConfig(path=str(path)))


def test_broken_config(tmp_path):
    (tmp_path / "config.json").write_text("{")
    fails(tmp_path, "cannot read .*config.json")
    (tmp_path / "config.json").write_text("[]")
    fails(tmp_path, "must hold a JSON object")


def edit_config(path, **values) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | values))


def test_architectures_that_cannot_be_used(model_directory):
    path = model_directory("llama")
    edit_config(path, architectures=None)
    fails(path, "names no architecture; add for example")
    edit_config(path, architectures=["T5ForConditionalGeneration"])
    fails(path, r"architecture T5ForConditionalGeneration .* is none of \*ForCausalLM")
    edit_config(path, architectures=["LlamaForCausalLM"], model_type="unheard_of")
    fails(path, "cannot load the model in .*unheard_of")


def test_damaged_and_missing_weights(model_directory):
    path = model_directory("llama")
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    fails(path, "cannot load the model in .*; check its files or copy it again")
    weights.write_bytes(b"not safetensors")
    fails(path, "cannot load the model in")
    weights.unlink()
    fails(path, "cannot load the model in .*model.safetensors")


def test_weights_that_lack_a_parameter(model_directory):
    from safetensors.torch import load_file, save_file

    path = model_directory("llama")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    fails(path, "lack 1 parameters, first model.layers.1.mlp.up_proj.weight")


def test_weights_of_another_size(model_directory):
    path = model_directory("llama")
    edit_config(path, intermediate_size=40)
    fails(
        path,
        r"hold model\.layers\.0\.mlp\.\w+\.weight as \[\d+, \d+\], and config.json makes it \[",
    )


def test_a_setting_of_another_type_is_named(model_directory):
    path = model_directory("llama")
    edit_config(path, vocab_size="256")
    fails(path, "cannot load the model in .*vocab_size.*str")


def test_a_config_nested_too_deep(model_directory):
    path = model_directory("llama")
    (path / "config.json").write_text("[" * 100_000)
    fails(path, "cannot read .*config.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.symlink_to(path.with_name("blob")),
        lambda path: path.mkdir(),
        lambda path: path.write_bytes((4).to_bytes(8, "little") + b"[1] "),
        lambda path: path.write_bytes((10).to_bytes(8, "little") + b'{"a": "b"}'),
        lambda path: path.write_bytes((99_999).to_bytes(8, "little") + b"[" * 99_999),
    ],
    ids=["link to nothing", "directory", "list", "text", "deep"],
)
def test_weights_that_are_no_file_are_refused_by_loading_them(model_directory, damage):
    path = model_directory("llama")
    (path / "model.safetensors").unlink()
    damage(path / "model.safetensors")
    assert form_of(path) is None
    fails(path, "cannot load the model in")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameter_that_is_not_finite_is_named(model_directory, tiny_model, value: float):
    path = model_directory("llama")
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, :2] = value
    model.save_pretrained(path)
    fails(path, "2 of 384 values of parameter model.layers.1.mlp.up_proj.weight of .* are NaN or infinite")


def test_unknown_device(model_directory):
    with pytest.raises(UserError, match="model.device 'quantum' cannot be used here .*; try auto or cpu"):
        pick_device("quantum")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def factory_module(tmp_path, monkeypatch):
    """Writes a module that only `import_paths` make importable."""
    (tmp_path / "hpcmpq_test_factories.py").write_text(
        "import torch\n"
        "def make_model():\n    torch.manual_seed(0)\n    return torch.nn.Linear(3, 2)\n"
        "def make_number():\n    return 3\n"
        "def make_lazy():\n    return torch.nn.Sequential(torch.nn.LazyLinear(2))\n"
        "def make_compiled():\n    return torch.jit.script(torch.nn.Linear(3, 2))\n"
        "def make_trouble():\n    raise KeyError('weights')\n"
        "VALUE = 1\n"
    )
    (tmp_path / "hpcmpq_test_broken.py").write_text("import a_module_that_is_missing\n")
    (tmp_path / "hpcmpq_test_raising.py").write_text("1 / 0\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield [str(tmp_path)]
    for name in [name for name in sys.modules if name.startswith("hpcmpq_test_")]:
        del sys.modules[name]


def test_factory_model(factory_module):
    config = ModelConfig(factory="hpcmpq_test_factories:make_model", dtype="float64", device="cpu")
    model = load_model(config, import_paths=factory_module)
    assert isinstance(model, nn.Linear)
    assert model.weight.dtype == torch.float64
    assert not model.weight.requires_grad
    assert forward(model, {"input": torch.ones(4, 3, dtype=torch.float64)}).shape == (4, 1, 2)


def test_factory_in_the_working_directory(factory_module, monkeypatch):
    monkeypatch.chdir(factory_module[0])
    assert resolve_factory("hpcmpq_test_factories:make_number")() == 3


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("hpcmpq_test_factories", "must look like package.module:function"),
        ("hpcmpq_test_nowhere:f", "no module 'hpcmpq_test_nowhere' for the factory .*; install it"),
        ("hpcmpq_test_broken:f", "importing .* needs the missing module 'a_module_that_is_missing'"),
        ("hpcmpq_test_raising:f", "importing .* failed: ZeroDivisionError: division by zero"),
        ("hpcmpq_test_factories:make_modle", "has no function 'make_modle'; did you mean make_model"),
        ("hpcmpq_test_factories:VALUE", "has no function 'VALUE'"),
        ("hpcmpq_test_factories:make_number", "returned int; it must return a torch.nn.Module"),
        ("hpcmpq_test_factories:make_lazy", "whose 0.weight has no shape yet; run it once on a batch"),
        ("hpcmpq_test_factories:make_compiled", "a compiled module; return the one it was made from"),
        ("hpcmpq_test_factories:make_trouble", "raised KeyError: 'weights'"),
    ],
)  # fmt: skip
def test_factories_that_fail(factory_module, factory: str, message: str):
    with pytest.raises(UserError, match=message):
        load_model(ModelConfig(factory=factory, device="cpu"), import_paths=factory_module)


def test_fingerprint_depends_on_names_shapes_types_and_bits(tiny_model):
    original = weights_fingerprint(tiny_model("gpt2"))
    assert weights_fingerprint(tiny_model("gpt2")) == original
    changed = tiny_model("gpt2")
    changed.transformer.h[0].mlp.c_fc.weight.data[3, 4] *= 1 + 1e-6
    assert weights_fingerprint(changed) != original
    assert weights_fingerprint(tiny_model("gpt2").bfloat16()) != original
    flat, tall = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
    flat.weight.data.zero_()
    tall.weight.data.zero_()
    assert weights_fingerprint(flat) != weights_fingerprint(tall)
    assert weights_fingerprint(nn.Sequential(flat)) != weights_fingerprint(flat)


def test_fingerprint_does_not_depend_on_tying_memory_or_device_layout():
    shared, apart = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    twin = nn.Linear(3, 3, bias=False)
    twin.weight = shared.weight
    apart.weight.data = shared.weight.data.clone()
    assert weights_fingerprint(nn.Sequential(shared, twin)) == weights_fingerprint(
        nn.Sequential(shared, apart)
    )
    apart.weight.data = shared.weight.data.t().contiguous().t()
    assert weights_fingerprint(nn.Sequential(apart)) == weights_fingerprint(nn.Sequential(shared))


@pytest.mark.parametrize(
    ("shape", "expected"), [((2, 7), (2, 1, 7)), ((2, 5, 7), (2, 5, 7)), ((2, 7, 3, 4), (2, 12, 7))]
)
def test_outputs_are_samples_by_positions_by_outputs(shape, expected):
    class Fixed(nn.Module):
        def forward(self, input):
            return (torch.arange(float(torch.tensor(shape).prod())).reshape(shape), "aside")

    z_NTV = forward(Fixed(), {"input": torch.ones(2, 1)})
    assert z_NTV.shape == expected
    if len(shape) == 4:  # scores of class 1 at the first two pixels
        assert z_NTV[0, :2, 1].tolist() == [12.0, 13.0]


@pytest.mark.parametrize(
    ("result", "message"),
    [(torch.tensor(1.0), r"tensor of shape \[\]; it must be"),
     ({"loss": 1}, "the model returned dict"), (None, "NoneType")],
)  # fmt: skip
def test_outputs_that_cannot_be_compared(result, message):
    class Fixed(nn.Module):
        def forward(self, input):
            return result

    with pytest.raises(UserError, match=message):
        forward(Fixed(), {"input": torch.ones(2, 1)})


def test_a_model_that_draws_at_random_is_refused():
    class Dropping(nn.Linear):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x))

    inputs = {"input": torch.ones(1, 8)}
    check_repeatable(nn.Sequential(nn.Linear(8, 8), nn.Dropout()).eval(), inputs)
    with pytest.raises(UserError, match="differ from pass to pass .* functional dropout"):
        check_repeatable(nn.Sequential(Dropping(8, 8)).eval(), inputs)
    with pytest.raises(UserError, match="are NaN or infinite; use model.dtype float32"):
        check_repeatable(nn.Linear(8, 8), {"input": torch.full((1, 8), torch.inf)})


def test_a_model_of_text_and_images_is_a_language_model_where_it_is_given_text(tmp_path, caplog):
    model, inputs = make("llava", torch.float32)
    model.save_pretrained(tmp_path)
    description = describe_model(ModelConfig(path=str(tmp_path)))
    assert (description.kind, description.vocab_size) == ("causal_lm", 50)
    loaded = load_model(ModelConfig(path=str(tmp_path)))
    torch.testing.assert_close(forward(loaded, inputs), forward(model, inputs))
    groups = find_groups(loaded, GroupsConfig(), inputs)
    assert all(group.name.startswith("model.language_model.layers.") for group in groups)
    assert (
        "play no part in the outputs on these samples and stay as they are, first model.vision" in caplog.text
    )
