"""One forward pass with the sizes of its tensors watched."""

from typing import Any

from torch import Tensor, nn

from hpcmpq.models.outputs import Inputs, forward


def watched_pass(model: nn.Module, inputs: Inputs, block: nn.Module | None) -> tuple[Tensor, int, int]:
    """Outputs, elements of the widest output of any layer, and of a hidden state: at most the widest where the
    blocks are pieces of a graph, which the model itself does not call.
    """
    sizes = [0]
    state = [0]

    def leaf(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    def first(_: nn.Module, __: Any, output: Any) -> None:
        state.append((output[0] if isinstance(output, tuple) else output).numel())

    inner = [module for module in model.modules() if not any(True for _ in module.children())]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    handles = [module.register_forward_hook(leaf) for module in inner if module is not head]
    if block is not None:
        handles.append(block.register_forward_hook(first))
    try:
        z_NTV = forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return z_NTV, max(sizes), max(state) or max(sizes)
