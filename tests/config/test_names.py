"""Names that people type: hyphens and underscores are one spelling, in configs and on the command line."""

import dataclasses
from typing import Any, get_args, get_origin

import pytest
import typer

from hpcmpq.cli import app
from hpcmpq.config import parse_config
from hpcmpq.errors import UserError
from hpcmpq.evaluate.engines import ENGINES
from hpcmpq.executors import EXECUTORS
from hpcmpq.export import EXPORTERS
from hpcmpq.formats import FORMATS
from hpcmpq.sensitivity import METHODS
from hpcmpq.settings import Config
from hpcmpq.solve.settings import parse_budgets
from hpcmpq.solvers import SOLVERS
from hpcmpq.targets import TARGETS

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

WRITTEN = {
    "model": {"path": "my_models/a_b"},
    "calibration": {"data": "some_text.txt"},
    "groups": {"exclude": ["*.c_proj"], "tie": [["q_proj", "k_proj"]]},
    "formats": ["int4", "fp8_e4m3"],
    "target": "llama_cpp",
    "quantizer": {"group_size": 32, "checkpoints": {"int4": "a_b"}},
    "sensitivity": {"method": "first_order"},
    "budgets": {"weight_bits": 3.0, "size_bytes": 4e9},
    "solver": {
        "name": "quadratic",
        "fixed": {"*.q_proj": "fp8_e4m3"},
        "forbidden": {"*.k_proj": ["fp8_e4m3"]},
    },
    "evaluation": {"tasks": [{"name": "a-b", "path": "a_b.jsonl", "type": "multiple_choice"}]},
}

TYPED = WRITTEN | {
    "formats": ["int4", "fp8-e4m3"],
    "target": "llama-cpp",
    "sensitivity": {"method": "first-order"},
    "budgets": {"weight-bits": 3.0, "size-bytes": 4e9},
    "solver": {
        "name": "quadratic",
        "fixed": {"*.q_proj": "fp8-e4m3"},
        "forbidden": {"*.k_proj": ["fp8-e4m3"]},
    },
    "evaluation": {"tasks": [{"name": "a-b", "path": "a_b.jsonl", "type": "multiple-choice"}]},
}


def test_a_config_with_hyphens_is_the_one_with_underscores():
    assert parse_config(TYPED) == parse_config(WRITTEN)
    assert parse_config({**TYPED, "sensitivity": "first-order"}) == parse_config(WRITTEN)
    assert parse_config(WRITTEN).evaluation.tasks[0].name == "a-b"  # which is nobody's table


def test_a_budget_in_both_spellings_is_named_twice():
    with pytest.raises(UserError, match="budgets names weight_bits twice; leave out weight-bits"):
        parse_config({**WRITTEN, "budgets": {"weight-bits": 3, "weight_bits": 4}})


@pytest.mark.parametrize("table", [ENGINES, EXECUTORS, EXPORTERS, FORMATS, METHODS, SOLVERS, TARGETS])
def test_tables_spell_with_underscores(table: dict[str, object]):
    assert not [name for name in table if "-" in name]


def choices(kind: type) -> list[str]:
    found: list[str] = []
    for entry in dataclasses.fields(kind):
        for declared in (entry.type, *get_args(entry.type)):
            if dataclasses.is_dataclass(declared):
                found += choices(declared)  # type: ignore[arg-type]
            elif "Literal" in str(get_origin(declared)):
                found += get_args(declared)
    return found


def test_choices_are_spelt_with_underscores():
    assert "multiple_choice" in choices(Config)
    assert not [name for name in choices(Config) if "-" in name]


NAMED = {"executor", "solver", "cost", "format", "engine", "maximize"}
"""Options that take a name."""

OPTIONS = [
    (name, option.name) for name in COMMANDS for option in COMMANDS[name].params if option.name in NAMED
]


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_options_that_take_names(command: str, option: str):
    required = [param for param in COMMANDS[command].params if param.required]
    words = [w for p in required for w in ([p.opts[0], "x"] if p.param_type_name == "option" else ["x"])]
    [opt] = [param.opts[0] for param in COMMANDS[command].params if param.name == option]
    context = COMMANDS[command].make_context(command, [*words, opt, "some-long_name"])
    assert context.params[option] == "some_long_name"


def test_every_command_with_a_name_is_tested():
    assert {("export", "format"), ("solve", "maximize"), ("frontier", "cost"), ("submit", "executor")} <= {
        *OPTIONS
    }


def test_budgets_on_the_command_line():
    assert parse_budgets(["weight-bits=3", "weight_bits=2.5"]) == {"weight_bits": 2.5}
