"""The compiled extension, csrc/bindings/module.cpp."""

from collections.abc import Sequence

from torch import Tensor

build_info: dict[str, str | int]

def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    weight_offset: float = 0.0,
) -> Tensor: ...
def check_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    weight_offset: float = 0.0,
) -> None: ...
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    *,
    weight_offset: float = 0.0,
) -> Tensor: ...
def check_rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    *,
    weight_offset: float = 0.0,
) -> None: ...
def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]: ...
def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]: ...
def check_add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    weight_offset: float = 0.0,
) -> None: ...
def check_add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    *,
    weight_offset: float = 0.0,
) -> None: ...
def adaptive_layer_norm(input: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor: ...
def adaptive_rms_norm(input: Tensor, scale: Tensor, shift: Tensor | None, eps: float | None) -> Tensor: ...
def check_adaptive_layer_norm(input: Tensor, scale: Tensor, shift: Tensor, eps: float) -> None: ...
def check_adaptive_rms_norm(input: Tensor, scale: Tensor, shift: Tensor | None, eps: float | None) -> None: ...
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    slope: float = 0.01,
) -> Tensor: ...
def check_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    slope: float = 0.01,
) -> None: ...
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    activation: str | None = None,
    slope: float = 0.01,
) -> Tensor: ...
def check_group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    activation: str | None = None,
    slope: float = 0.01,
) -> None: ...
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *,
    activation: str | None,
    slope: float,
) -> Tensor: ...
def check_instance_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *,
    activation: str | None,
    slope: float,
) -> None: ...
def check_not_differentiated(running_mean: Tensor | None, running_var: Tensor | None, training: bool, /) -> None: ...
def transformed() -> bool: ...
def supported_isas() -> list[str]: ...
def get_isa() -> str: ...
def set_isa(name: str, /) -> None: ...
def replaceable_norms() -> list[str]: ...
def enabled_norms() -> list[str]: ...
def set_enabled_norms(norms: Sequence[str], /) -> None: ...
