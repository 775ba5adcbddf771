"""How ``torch.distributed.tensor`` may shard the norms' operators.

What a tensor is to an operator its name in the schema tells (ROLES). A norm is described by its layouts: what each role
may be, together, along one dimension of the mesh. A layout needs no communication; where a call fits none, DTensor
redistributes its arguments to the cheapest. That everything is replicated is always one of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._op_schema import OpSchema, OpStrategy, RuntimeSchemaInfo
from torch.distributed.tensor._ops.utils import expand_to_full_mesh_op_strategy
from torch.distributed.tensor.placement_types import Placement

ops = torch.ops.normext
Arguments = dict[str, Any]  # an operator's arguments by name; tensors as OpStrategy
Layout = dict[str, Placement]  # by role

ROLES = {
    "data": ("input", "output", "grad_output", "grad_input", "residual", "sum", "grad_sum", "grad_residual"),
    "statistics": ("mean", "rstd", "var"),
    "parameters": ("weight", "bias", "running_mean", "running_var"),
    "gradients": ("grad_weight", "grad_bias"),
    "lines": ("scale", "shift"),
    "grad_lines": ("grad_scale", "grad_shift"),
    "moments": ("moments", "parts"),
    "sums": ("sums",),
}
ROLE = {name: role for role, names in ROLES.items() for name in names}
REPLICATED: Layout = dict.fromkeys(ROLES, Replicate())


def _independent(dim: int) -> Layout:
    """Data cut along a dimension that statistics are not taken over: each part has all it needs but the parameters."""
    return {"data": Shard(dim), "statistics": Shard(dim), "parameters": Replicate(), "gradients": Partial()}


def row_norm(arguments: Arguments) -> list[Layout]:
    """Statistics over ``normalized_shape``: all dimensions before it are independent."""
    data = arguments["sum" if "sum" in arguments else "input"]
    rows = data.ndim - len(arguments["normalized_shape"])
    return [_independent(dim) for dim in range(rows)]


def adaptive_norm(arguments: Arguments) -> list[Layout]:
    """The same over the last dimension; scale and shift are cut where they are not shared."""
    scale = arguments["scale"].shape
    return [
        {
            **_independent(dim),
            "lines": Replicate() if scale[dim] == 1 else Shard(dim),
            "grad_lines": Partial() if scale[dim] == 1 else Shard(dim),
        }
        for dim in range(len(scale) - 1)
    ]


def _given_statistics(arguments: Arguments) -> list[Layout]:
    """Of each channel, for every process: each other dimension is independent."""
    others = (dim for dim in range(arguments["input"].ndim) if dim != 1)
    return [{**_independent(dim), "statistics": Replicate()} for dim in others]


def channel_norm(arguments: Arguments) -> list[Layout]:
    """Statistics of each channel, which in evaluation are given."""
    channels: Layout = {"data": Shard(1), **dict.fromkeys(("statistics", "parameters", "gradients"), Shard(0))}
    return [channels] if arguments["training"] else [channels, *_given_statistics(arguments)]


def whole_batch(arguments: Arguments) -> list[Layout]:
    """Moments, which no placement puts together: their merge is no sum, and channels are not what they are cut by."""
    return []


def part_of_batch(arguments: Arguments) -> list[Layout]:
    """The maps by given moments and sums. A part's own sums are partial ones."""
    sums = Replicate() if "sums" in arguments else Partial()
    return [{**layout, "moments": Replicate(), "sums": sums} for layout in _given_statistics(arguments)]


def group_norm(arguments: Arguments) -> list[Layout]:
    """Statistics of each sample. (Each part of the channels would have other groups than the call says.)"""
    return [_independent(0)]


def running_statistics(arguments: Arguments) -> list[Layout]:
    """Each channel's stand alone."""
    placements = {arguments[name].strategies[0].output_spec.placements for name in ("running_mean", "running_var")}
    if len(placements) != 1:
        raise RuntimeError(f"expected running_mean and running_var of the same placements, but got {placements}")
    channels: Layout = dict.fromkeys(ROLES, Shard(0))
    return [channels]


def _returned(schema: torch.FunctionSchema, arguments: Arguments) -> list[str | None]:
    """The outputs' names; None for gradients that nobody asked for, and for the mean of a norm that takes none."""
    names = [output.name for output in schema.returns]
    mask = arguments.get("output_mask", [name != "mean" or arguments.get("centered", True) for name in names])
    return [name if wanted else None for name, wanted in zip(names, mask, strict=True)]


def _strategy(layouts: Callable[[Arguments], list[Layout]], call: OpSchema) -> OpStrategy:
    schema = call.op._schema
    arguments = {argument.name: value for argument, value in zip(schema.arguments, call.args_schema, strict=False)}
    outputs = _returned(schema, arguments)
    inputs = [name for name, value in arguments.items() if isinstance(value, OpStrategy)]
    placements: list[list[Placement | None]] = [
        [None if name is None else layout[ROLE[name]] for name in (*outputs, *inputs)]
        for layout in (REPLICATED, *layouts(arguments))
    ]
    # What an operator writes to (its first argument, then) stays where it is.
    return expand_to_full_mesh_op_strategy(
        call.get_mesh_from_args(), call, placements, input_index=len(outputs), inplace_op=schema.is_mutable
    )


LAYOUTS = {
    ops.layer_norm_forward: row_norm,
    ops.layer_norm_backward: row_norm,
    ops.rms_norm_forward: row_norm,
    ops.rms_norm_backward: row_norm,
    ops.add_norm_forward: row_norm,
    ops.add_norm_backward: row_norm,
    ops.adaptive_norm_forward: adaptive_norm,
    ops.adaptive_norm_backward: adaptive_norm,
    ops.batch_norm_forward: channel_norm,
    ops.batch_norm_backward: channel_norm,
    ops.batch_norm_activation_backward: channel_norm,
    ops.batch_norm_moments: whole_batch,
    ops.batch_norm_merge: whole_batch,
    ops.batch_norm_map: part_of_batch,
    ops.batch_norm_gradient_sums: part_of_batch,
    ops.batch_norm_gradient_map: part_of_batch,
    ops.group_norm_forward: group_norm,
    ops.group_norm_backward: group_norm,
    ops.batch_norm_update_stats: running_statistics,
}
for operator, layouts in LAYOUTS.items():
    # Everything after the first argument counts, such as normalized_shape, training and output_mask, when DTensor asks
    # its cache whether it has seen a call before. register_sharding, the public way, looks at tensors only.
    DTensor._op_dispatcher.sharding_propagator.register_op_strategy(
        operator.default, partial(_strategy, layouts), RuntimeSchemaInfo(static_argnum=1)
    )
