"""What a configuration says, with types: plain frozen dataclasses.

The solve path, which reads them back from `plan.json`, needs neither pydantic nor YAML; `hpcmpq.config` makes them
from YAML and checks them.
"""

from hpcmpq.settings.calibration import CalibrationConfig
from hpcmpq.settings.plain_values import from_values, to_values
from hpcmpq.settings.quantizer import Quantizer, ReroundConfig
from hpcmpq.settings.sections import (
    Config,
    EvaluationConfig,
    GroupsConfig,
    ModelConfig,
    RefineConfig,
    SensitivityConfig,
    SolverConfig,
    TaskConfig,
    TimingConfig,
    is_factory,
)

__all__ = [
    "CalibrationConfig",
    "Config",
    "EvaluationConfig",
    "GroupsConfig",
    "ModelConfig",
    "Quantizer",
    "RefineConfig",
    "ReroundConfig",
    "SensitivityConfig",
    "SolverConfig",
    "TaskConfig",
    "TimingConfig",
    "from_values",
    "is_factory",
    "to_values",
]
