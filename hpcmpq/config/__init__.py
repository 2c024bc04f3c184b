"""The configuration file: YAML to frozen dataclasses; an unknown key is an error that names a valid one.

The dataclasses are plain; pydantic validates them on reading only, so that the solve path, which reads the
resolved values back from `plan.json`, needs neither pydantic nor YAML. To add a key: its field and meaning in
`sections`, what its type cannot refuse in `checks`.
"""

from hpcmpq.config.checks import check_format
from hpcmpq.config.names import table_name
from hpcmpq.config.read import (
    is_factory,
    parse_config,
    read_config,
    resolve_paths,
    text_of,
    to_values,
    values_of,
)
from hpcmpq.config.sections import (
    CalibrationConfig,
    Config,
    EvaluationConfig,
    GroupsConfig,
    ModelConfig,
    RefineConfig,
    SensitivityConfig,
    SolverConfig,
    TaskConfig,
)

__all__ = [
    "CalibrationConfig",
    "Config",
    "EvaluationConfig",
    "GroupsConfig",
    "ModelConfig",
    "RefineConfig",
    "SensitivityConfig",
    "SolverConfig",
    "TaskConfig",
    "check_format",
    "is_factory",
    "parse_config",
    "read_config",
    "resolve_paths",
    "table_name",
    "text_of",
    "to_values",
    "values_of",
]
