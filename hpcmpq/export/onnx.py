"""An ONNX graph whose quantized layers are `com.microsoft.MatMulNBits`, for ONNX Runtime.

The graph is torch's own export of the model in float32; products with searched weights are replaced by their packed
codes and float32 scales. ONNX Runtime's CPU kernels take 2, 4 and 8 bits.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.export.holdable import ExportSubject
from hpcmpq.export.kept_tensors import say_left_out
from hpcmpq.export.refusal import refuse_choices, refuse_formats
from hpcmpq.export.written import Written
from hpcmpq.formats import FORMATS
from hpcmpq.models.beside_weights import copy_small_files
from hpcmpq.models.description import describe_model
from hpcmpq.models.factories import describe
from hpcmpq.models.load import quiet_transformers
from hpcmpq.models.outputs import Logits
from hpcmpq.models.searchable_layers import plain_experts
from hpcmpq.plan import Plan
from hpcmpq.quantized.variants import Variants
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.integer import code_limits
from hpcmpq.quantizers.packing import pack
from hpcmpq.space import Group, Member
from hpcmpq.wording import show_bytes

HELD = ("int2", "int4", "int8")
BLOCK_SIZES = (16, 32, 64, 128, 256)
MAX_BYTES = 2 * 10**9
"""Of a protocol buffer, while torch's graph of the original is one."""

EXACT = 1
"""`accuracy_level` of products in float32; other levels round the inputs."""


def export(plan: Plan, variants: Variants, assignment: Mapping[str, str], directory: Path) -> Written:
    """Write `model.onnx`: input_ids int64 [N, T] to logits float32 [N, T, V].

    Raises:
        UserError: If the model is no language model of a directory, or a format or the quantizer cannot be held.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (what torch's exporter needs)
    except ImportError:
        raise UserError("the onnx export needs onnx and onnxscript; pip install 'hpcmpq[export]'") from None
    refuse_formats("onnx", plan, assignment, HELD)
    refuse_choices(held, ExportSubject(plan.config, plan.space, variants.model), assignment)
    chosen = {m.parameter: (m, assignment[g.name]) for g in plan.space.groups for m in g.members}
    stored = {name: (*variants.encoded(*found), *found) for name, found in chosen.items()}
    path = str(plan.config.model.path)
    copy_small_files(path, directory)
    graph = _traced(variants.model, directory / "model.onnx")
    replaced = _replace_products(onnx, graph, stored, variants)
    if lost := sorted(set(stored) - replaced):
        raise UserError(
            f"torch's graph has no plain product with {lost[0]}; exclude it or use another export"
        )
    onnx.save(graph, directory / "model.onnx")
    return Written("ONNX graph model.onnx", tuple(say_left_out(variants.model, Path(path))))


def check(subject: ExportSubject) -> None:
    """Refuse a model that is too large or no language model; what torch makes of its graph shows when it is made."""
    if describe_model(subject.config.model).kind != "causal_lm":
        raise UserError("the onnx export takes language models of a Hugging Face directory only")
    num_bytes = 4 * sum(parameter.numel() for parameter in subject.model.parameters())
    if num_bytes > MAX_BYTES:
        raise UserError(
            f"the model takes {show_bytes(num_bytes)} in float32, one ONNX file holds {show_bytes(MAX_BYTES)}; use "
            "compressed_tensors or gguf"
        )
    quantizer = subject.config.quantizer
    if quantizer.group_size not in BLOCK_SIZES or not quantizer.symmetric:
        raise UserError(
            "onnx holds symmetric codes in groups of "
            f"{', '.join(map(str, BLOCK_SIZES))}; set quantizer.group_size and quantizer.symmetric: true"
        )


def held(subject: ExportSubject, group: Group, names: Sequence[str]) -> tuple[str, ...]:
    """Those of a group's formats that the graph holds."""
    size = subject.config.quantizer.group_size
    for member in group.members:
        if size is None or member.num_columns % size:
            raise UserError(
                f"{member.parameter} has {member.num_columns} inputs, not a multiple of quantizer.group_size "
                f"{size} as onnx needs; choose a divisor or exclude it"
            )
    kept = tuple(name for name in names if name in HELD)
    if not kept:
        raise UserError(
            f"onnx holds {', '.join(HELD)}, and {group.name} has none of them; add one to formats"
        )
    return kept


def _traced(model: nn.Module, path: Path) -> Any:
    """torch's ONNX graph of a model, with weights under their own names."""
    import onnx

    logits = Logits(copy.deepcopy(model).float().cpu()).eval()
    plain_experts(logits.model)
    tokens_NT = torch.zeros(2, 5, dtype=torch.int64)
    sizes = {"input_ids": {0: torch.export.Dim("samples"), 1: torch.export.Dim("tokens")}}
    try:
        with quiet_transformers():
            program = torch.onnx.export(
                logits,
                (tokens_NT,),
                dynamo=True,
                optimize=False,
                verbose=False,
                input_names=["input_ids"],
                output_names=["logits"],
                dynamic_shapes=sizes,
            )
    except Exception as error:  # it runs the model's own code on fake tensors: it may fail in any way
        kind = type(model).__name__
        raise UserError(
            f"torch cannot export a {kind} to ONNX ({describe(error)}); use another export"
        ) from error
    assert program is not None
    program.save(str(path))
    graph = onnx.load(path)
    for node in graph.graph.node:
        del node.metadata_props[:]  # stack traces, more bytes than the packed weights of a small model
        if node.op_type == "Cast" and any(a.i == onnx.TensorProto.BFLOAT16 for a in node.attribute):
            raise UserError(
                f"a {type(model).__name__} computes in bfloat16 whatever its weights are stored in, which ONNX "
                "Runtime's CPU kernels do not; use another export"
            )
    return graph


def _replace_products(
    onnx: Any, graph: Any, stored: Mapping[str, tuple[Tensor, QParams, Member, str]], variants: Variants
) -> set[str]:
    """Put MatMulNBits where a searched weight is multiplied; the names of those weights."""
    nodes = list(graph.graph.node)
    names = {f"model.{name}": name for name in stored}
    transposed = {
        node.output[0]: (node, names[node.input[0]])
        for node in nodes
        if node.op_type == "Transpose" and node.input[0] in names
    }
    replaced: set[str] = set()
    for node in nodes:
        if node.op_type == "MatMul" and node.input[1] in transposed:
            name, bias = transposed[node.input[1]][1], None
        elif node.op_type == "Gemm" and node.input[1] in names:  # linear layers of flattened inputs
            name, bias = names[node.input[1]], node.input[2] if len(node.input) > 2 else None
        else:
            continue
        codes_MK, qparams, member, format_name = stored[name]
        num_bits = FORMATS[format_name].num_bits
        lowest, _ = code_limits(FORMATS[format_name], variants.quantizer)
        words_MW = pack(codes_MK.cpu(), num_bits, lowest).numpy()
        num_scales = qparams.scale.shape[1]
        blocks_MSB = words_MW.astype("<i4").view(np.uint8).reshape(member.num_rows, num_scales, -1)
        scale_M = qparams.scale.float().cpu().reshape(-1).numpy()
        if name not in replaced:
            graph.graph.initializer.append(onnx.numpy_helper.from_array(blocks_MSB, f"{name}.codes"))
            graph.graph.initializer.append(onnx.numpy_helper.from_array(scale_M, f"{name}.scales"))
        (result,) = node.output
        product = onnx.helper.make_node(
            "MatMulNBits",
            [node.input[0], f"{name}.codes", f"{name}.scales"],
            [result if bias is None else f"{result}_product"],
            name=node.name,
            domain="com.microsoft",
            K=member.num_columns,
            N=member.num_rows,
            bits=num_bits,
            block_size=variants.quantizer.group_size,
            accuracy_level=EXACT,
        )
        if bias is not None:
            sum_node = onnx.helper.make_node(
                "Add", [product.output[0], bias], [result], name=f"{node.name}_bias"
            )
            graph.graph.node.insert(list(graph.graph.node).index(node) + 1, sum_node)
        node.CopyFrom(product)
        replaced.add(name)
    _drop_unused(graph)
    graph.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return replaced


def _drop_unused(graph: Any) -> None:
    """Remove transposes and weights that nothing reads any more."""
    outputs = {output.name for output in graph.graph.output}
    while True:
        used = outputs | {name for node in graph.graph.node for name in node.input}
        idle = [node for node in graph.graph.node if not used & set(node.output)]
        if not idle:
            break
        for node in idle:
            graph.graph.node.remove(node)
    for tensor in [tensor for tensor in graph.graph.initializer if tensor.name not in used]:
        graph.graph.initializer.remove(tensor)
