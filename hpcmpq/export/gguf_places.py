"""Where llama.cpp has the tensors of a model: their names, which of their rows, and in which order.

Experts that transformers keeps in one tensor are one tensor in GGUF too, of gate, up and down projections each.
Source: `modify_tensors` of the classes in llama.cpp's `conversion/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hpcmpq.errors import UserError

Matrix = TypeVar("Matrix", Tensor, np.ndarray)

_BIAS_OF_CHOICE = "e_score_correction_bias"


@dataclass(frozen=True)
class GGUFPlace:
    """A tensor of the file.

    Attributes:
        name: Its name.
        order_M: Rows of the model's matrix that it has, in its order; None for all as they are.
        num_experts: Matrices one after another in these rows; None of what is no stack of experts.
    """

    name: str
    order_M: Tensor | None = None
    num_experts: int | None = None

    @property
    def is_router(self) -> bool:
        """Whether it is a weight that chooses or weighs experts."""
        return "ffn_gate_inp" in self.name

    def rows(self, matrix_MK: Matrix) -> Matrix:
        """What it has of a matrix with the model's rows."""
        if self.order_M is not None:
            matrix_MK = matrix_MK[self.order_M if isinstance(matrix_MK, Tensor) else self.order_M.numpy()]
        shape = matrix_MK.shape if self.num_experts is None else (self.num_experts, -1, matrix_MK.shape[-1])
        return matrix_MK.reshape(*shape)

    def of(self, tensor: Tensor) -> Tensor:
        """What it has of a tensor of the model."""
        if self.num_experts is not None:
            return self.rows(tensor.reshape(-1, tensor.shape[-1]))
        rows = self.rows(tensor)
        return (
            rows.flatten() if self.is_router and len(rows) == 1 else rows
        )  # a gate of shared experts is a vector


def places_of(
    name: str, tensor: Tensor, names: Any, architecture: str, values: Mapping[str, Any]
) -> list[GGUFPlace]:
    """Where a tensor of the model goes.

    Args:
        name: In the model.
        tensor: Its values, or none: only its shape counts.
        names: The map of names of the package gguf.
        architecture: llama.cpp's name of the model's.
        values: Of its resolved config.

    Raises:
        UserError: If llama.cpp has no place for it.
    """
    stem, _, own = name.rpartition(".")
    if own in ("gate_up_proj", "down_proj") and tensor.ndim == 3:
        num_experts, height = tensor.shape[:2]
        numbers_EM = torch.arange(num_experts * height).reshape(num_experts, height)
        parts = {"gate_proj": 0, "up_proj": 1} if own == "gate_up_proj" else {own: None}
        return [
            GGUFPlace(
                f"{_found(names, f'{stem}.{part}')}.weight",
                None if half is None else numbers_EM.chunk(2, 1)[half].reshape(-1),
                num_experts,
            )
            for part, half in parts.items()
        ]
    name = name.replace(_BIAS_OF_CHOICE, _BIAS_OF_CHOICE.replace("_bias", ".bias"))
    return [GGUFPlace(_found(names, name), row_order(name, architecture, values))]


def _found(names: Any, name: str) -> str:
    place: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if place is None:
        raise UserError(f"llama.cpp has no place for {name}; use another export")
    return place


def row_order(name: str, architecture: str, values: Mapping[str, Any]) -> Tensor | None:
    """Rows of queries and keys in the order of llama.cpp's rotary positions, which pairs neighbours, or None."""
    layer = name.rpartition(".")[0].rpartition(".")[2]
    if architecture != "llama" or layer not in ("q_proj", "k_proj"):
        return None
    heads = values["num_attention_heads"]
    head_dim = values.get("head_dim") or values["hidden_size"] // heads
    if layer == "k_proj":
        heads = values.get("num_key_value_heads") or heads
    return torch.arange(heads * head_dim).reshape(heads, 2, head_dim // 2).transpose(1, 2).reshape(-1)
