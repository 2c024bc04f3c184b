"""Pieces that ranks fill by themselves, put together, against whole tensors that are rounded at once."""

from types import SimpleNamespace

import pytest
import torch

from hpcmpq.evaluate.engines.zero_shards import ZeroPieces
from hpcmpq.formats import Quantizer
from hpcmpq.quantized.variants import Variants
from hpcmpq.quantizers.codes import QParams
from hpcmpq.space import Group, Member, SearchSpace

SHAPES = {"linear": (7, 10), "conv": (6, 2, 3, 3), "transposed": (10, 7), "bias": (5,), "scalar": ()}


class Plain(torch.nn.Module):
    """A model of nothing but parameters."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            generator = torch.Generator().manual_seed(len(name))
            self.register_parameter(name, torch.nn.Parameter(torch.randn(shape, generator=generator)))


def pieces(model: torch.nn.Module, size: int) -> SimpleNamespace:
    """What ZeRO-3 makes of a model: empty pieces, padded to one size."""

    def cut(parameter: torch.nn.Parameter) -> SimpleNamespace:
        length = -(-parameter.numel() // size)
        piece = torch.full((length,), float("nan"))
        piece.ds_numel = length  # type: ignore[attr-defined]
        return SimpleNamespace(ds_shape=parameter.shape, ds_numel=parameter.numel(), ds_tensor=piece)

    named = [(name, cut(parameter)) for name, parameter in model.named_parameters()]
    return SimpleNamespace(named_parameters=lambda remove_duplicate=True: named)


@pytest.mark.parametrize("size", [1, 2, 3, 11])
@pytest.mark.parametrize("group_size", [4, None])
def test_pieces_of_all_ranks_make_the_rounded_tensors(size: int, group_size: int | None):
    model = Plain().requires_grad_(False)
    members = {"linear": Member("linear", 7, 10), "conv": Member("conv", 6, 18)}
    members["transposed"] = Member("transposed", 7, 10, transposed=True)
    groups = tuple(Group(name, (member,)) for name, member in members.items())
    space = SearchSpace(groups, (("int2", "int3"),) * 3)
    quantizer = Quantizer(group_size=group_size)
    reads = []

    def rows(name: str, start: int, stop: int) -> torch.Tensor:
        whole = model.get_parameter(name)
        reads.append((name, stop - start))
        return whole.reshape(1) if whole.ndim == 0 else whole[start:stop]

    made = [ZeroPieces(pieces(model, size), space, quantizer, rows, rank) for rank in range(size)]  # type: ignore[arg-type]
    variants = Variants(model, space, quantizer)
    assignments = [{}, {"linear": "int2", "conv": "int3", "transposed": "int2"}, {"linear": "int3"}, {}]
    for shards in made:
        shards.fill_originals()
    for assignment in assignments:
        reads.clear()
        for shards in made:
            shards.fill(assignment)
        with variants.assigned(assignment):
            for name, parameter in model.named_parameters():
                whole = [dict(s.model.named_parameters())[name].ds_tensor for s in made]
                assert torch.equal(torch.cat(whole)[: parameter.numel()], parameter.reshape(-1)), name
    assert {name for name, _ in reads} == {"linear"}  # the others had their originals already
    if size == 11:
        assert max(number for _, number in reads) <= 2  # a rank reads the rows that its piece overlaps


class Codes:
    """Codes of a whole weight, which are not those of rounding to the nearest."""

    def holds(self, member: Member, format_name: str, quantizer: Quantizer) -> bool:
        return True

    def read(self, member: Member, format_name: str, weight_MK: torch.Tensor) -> tuple[torch.Tensor, QParams]:
        whole_MK = torch.arange(member.num_rows * member.num_columns).reshape(member.num_rows, -1)
        scale_M1 = torch.arange(1.0, member.num_rows + 1)[:, None]
        return whole_MK % 7 - 3, QParams(scale_M1)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pieces_of_joined_experts_take_the_codes_of_their_own_rows(size: int):
    num_experts, num_rows, num_columns = 4, 3, 5
    experts = torch.nn.Module()
    weight = torch.randn(num_experts, num_rows, num_columns)
    experts.register_parameter("experts", torch.nn.Parameter(weight))
    member = Member("experts", num_experts * num_rows, num_columns)
    space = SearchSpace((Group("experts", (member,)),), (("int3",),))
    quantizer = Quantizer(group_size=None)
    made = [
        ZeroPieces(pieces(experts, size), space, quantizer, lambda _, a, b: weight[a:b], rank, Codes())  # type: ignore[arg-type]
        for rank in range(size)
    ]
    for shards in made:
        shards.fill({"experts": "int3"})
    whole = torch.cat([dict(s.model.named_parameters())["experts"].ds_tensor for s in made])
    codes_MK, qparams = Codes().read(member, "int3", weight)
    assert torch.equal(whole[: weight.numel()], (codes_MK * qparams.scale).reshape(-1))
