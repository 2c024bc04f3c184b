"""What an export refuses whatever is solved, planning refuses or says, before anything is measured."""

import logging
import sys

import pytest
import torch

from bench.family_models import Family, make_model
from bench.family_recipes import FAMILIES
from hpcmpq.config import parse_config
from hpcmpq.errors import UserError
from hpcmpq.export import EXPORTERS, export
from hpcmpq.export.holdable import ExportSubject, check_exports, outlook
from hpcmpq.models.load import load_model
from hpcmpq.planning.dry import Device, dry_plan
from hpcmpq.planning.scaling import Site
from hpcmpq.settings import to_values
from tests.export.planned import add_stored, llama, plan_run, solve_by_turns

pytestmark = pytest.mark.slow

BYTES = {"vocab_size": 256}
JOINED = Family("HrmTextForCausalLM", BYTES)
"""transformers saves gates, queries, keys and values of this one as one tensor."""


def of_family(name: str) -> torch.nn.Module:
    """A family of the bench with a vocabulary of bytes."""
    family = FAMILIES[name]
    return make_model(Family(family.architecture, {**family.settings, **BYTES}))


@pytest.mark.parametrize(
    ("target", "formats"), [("transformers", ["int4"]), ("vllm", ["int4"]), ("tensorrt_llm", ["fp8_e4m3"])]
)
def test_weights_that_are_saved_joined_are_refused_by_plan(target, formats, tmp_path):
    wrong = r"transformers saves model\.\w_module\.layers\.0\.\S+ under another name, which \w+ cannot follow"
    settings = {"target": target, "formats": formats, "quantizer": {"group_size": 32}}
    with pytest.raises(UserError, match=wrong):
        plan_run(tmp_path, make_model(JOINED), **settings)
    assert not list((tmp_path / "run").glob("*.json"))
    values = {"model": {"path": str(tmp_path / "model")}, "calibration": {"data": "", "sequence_length": 32}}
    with pytest.raises(UserError, match=wrong):
        dry_plan(parse_config({**values, **settings}), Device(), Site())


def test_files_that_mlx_does_not_take_are_refused_by_plan(tmp_path):
    with pytest.raises(UserError, match=r"does not use, such as model\.mtp\.weight; plan from a copy"):
        plan_run(
            tmp_path,
            llama(),
            edit=lambda directory: add_stored(directory, {"model.mtp.weight": torch.zeros(4, 4)}),
            target="mlx",
            formats=["int4"],
        )


def test_tensors_that_llama_cpp_has_no_place_for_are_refused_by_plan(tmp_path, monkeypatch):
    """As newer releases of transformers may have them: llama.cpp's map knows all that the allow-list lets through."""
    import gguf

    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    lacking = {key: place for key, place in known.mapping.items() if not key.endswith("1.mlp.up_proj")}
    monkeypatch.setattr(known, "mapping", lacking)
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda *_: known)
    with pytest.raises(
        UserError, match=r"no place for model\.layers\.1\.mlp\.up_proj\.weight; use another export"
    ):
        plan_run(tmp_path, llama(), target="llama_cpp", formats=["int4"], quantizer={"group_size": 32})


def test_planning_for_llama_cpp_needs_no_package(tmp_path, caplog, monkeypatch):
    """A machine that plans and measures need not be the one that exports."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    run, plan = plan_run(
        tmp_path, llama(), target="llama_cpp", formats=["int4"], quantizer={"group_size": 32}
    )
    assert "only the export sees whether llama.cpp has a place" in caplog.text
    solve_by_turns(run, plan)
    with pytest.raises(UserError, match="needs the package gguf"):
        export(run, "gguf")


@pytest.mark.parametrize("model", ["Llama", "Lfm2", "Mixtral", "GPT2", "joined"])
@pytest.mark.parametrize("formats", [("int4", "int8"), ("int3", "fp8_e4m3")])
def test_what_is_said_without_a_target_is_what_exports_do(model, formats, tmp_path, caplog):
    caplog.set_level(logging.INFO, "hpcmpq")
    made = make_model(JOINED) if model == "joined" else of_family(model)
    # Of these formats one rounds inputs, which are not seen of layers that are used without being called.
    uncalled = {"Mixtral": ["*experts*"], "Lfm2": ["*conv.conv"]} if "fp8_e4m3" in formats else {}
    run, plan = plan_run(
        tmp_path,
        made,
        torch.float32,
        formats=list(formats),
        quantizer={"group_size": 32},
        groups={"exclude": uncalled.get(model, [])},
    )
    [sentence] = [r.getMessage() for r in caplog.records if r.name == "hpcmpq.export.holdable"]
    parts = dict(part.split(": ") for part in sentence.replace("exports that can hold ", "").split("; "))
    solve_by_turns(run, plan)
    for name in EXPORTERS:
        [said] = [key for key, names in parts.items() if name in names]
        if name == "onnx":
            assert said == "none" or "onnx (if torch can trace" in parts[said] or "onnx (not " in parts[said]
        elif said == "every solution":
            export(run, name, verify=False)
        else:
            with pytest.raises(UserError):
                export(run, name, verify=False)


def test_a_plan_that_is_there_already_is_warned(tmp_path, caplog):
    run, plan = plan_run(tmp_path, make_model(JOINED), formats=["int4"], quantizer={"group_size": 32})
    values = {**to_values(plan.config), "target": "vllm"}
    subject = ExportSubject(parse_config(values), plan.space, load_model(plan.config.model))
    check_exports(subject, planned=True)
    assert "compressed_tensors will refuse every solution: transformers saves" in caplog.text
    with pytest.raises(UserError, match="under another name"):
        check_exports(subject)
    assert "compressed_tensors" in outlook(subject).partition("none: ")[2]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (
            lambda: of_family("NanoChat"),
            "may not be loaded: this version of transformers cannot load it: its _init_weights reads",
        ),
        (lambda: of_family("GptOss"), "does not find them and loads random ones"),
        (lambda: of_family("Mixtral"), "unpacks the experts of all layers by one scheme"),
    ],
)
def test_what_transformers_may_not_load_is_said_by_plan(made, says, tmp_path, caplog):
    settings = {"formats": ["int4", "int8"], "quantizer": {"group_size": 32}}
    plan_run(tmp_path, made(), target="transformers", **settings)
    assert says in caplog.text
