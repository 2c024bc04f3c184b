"""Tensors that transformers makes of several: refused where they are not what the configuration says."""

import pytest
import torch
from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.models.joined_weights import JoinedWeight

loading = pytest.importorskip("transformers.core_model_loading")


def joined(rows: int) -> JoinedWeight:
    """A weight [rows, 3] of two tensors one below the other."""
    converter = loading.WeightConverter(["a", "b"], "w", operations=[loading.Concatenate(dim=0)])
    return JoinedWeight("w", "w", converter, (("a", "a"), ("b", "b")), nn.Identity(), torch.Size([rows, 3]))


def test_what_is_no_stack_is_refused_for_its_first_axis_too():
    files = {"a": torch.zeros(2, 3), "b": torch.ones(2, 3)}
    weight = joined(4)
    assert not weight.is_stack
    assert weight.read(files.__getitem__, torch.clone).equal(torch.cat([files["a"], files["b"]]))
    for read in (
        lambda: joined(5).read(files.__getitem__, torch.clone),
        lambda: joined(5).rows(0, 4, files.__getitem__, torch.clone),
    ):
        with pytest.raises(UserError, match=r"make w \[4, 3\], and config.json makes it \[5, 3\]"):
            read()
