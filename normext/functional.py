"""The norms as functions, with the arguments of their namesakes in ``torch.nn.functional``.

Each call takes one of four ways. While a compiler or exporter looks on, it goes through ``torch.ops.normext``, which it
can trace. A tensor subclass or a mode with ``__torch_function__`` is handed the call. Under ``torch.func`` transforms
and forward-mode AD, which refuse derivatives written in C++, compiled or not, it goes through
:mod:`normext.transforms`. Ordinary calls go straight into C++, and are found by the fewest questions: on tensors of a
few elements each is some percent of a call.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from normext import _C, transforms
from normext._C import transformed
from normext.activations import Activation, parts

__all__ = [
    "adaptive_layer_norm",
    "adaptive_rms_norm",
    "add_layer_norm",
    "add_rms_norm",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
]


def _call(function: Callable[..., Any], tensors: tuple[Tensor | None, ...], *arguments: Any, **options: Any) -> Any:
    """The norm that ``function`` is, by the way that this call takes."""
    name = function.__name__
    if is_compiling():
        return getattr(transforms if transforms.compiled() else torch.ops.normext, name)(*arguments, **options)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(function, tensors, *arguments, **options)
    return getattr(transforms if transformed() else _C, name)(*arguments, **options)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
) -> Tensor:
    """Normalizes over the last dimensions: ``(input - mean) / sqrt(var + eps) * (weight + weight_offset) + bias``.

    Source: Ba, Kiros and Hinton, "Layer Normalization" (2016), with the biased variance.

    Args:
        input: ``[*, *normalized_shape]``; float64, float32, bfloat16 or float16; any strides.
        normalized_shape: sizes of the trailing dimensions to normalize over.
        weight: ``normalized_shape``, of input's dtype, or float32 where input is bfloat16 or float16.
        bias: like weight, and of the same dtype.
        eps: added to the variance.
        weight_offset: added to the weight in the dtype that is computed in: 1 where weights are trained around zero.
            Without a weight it changes nothing.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit; the message names what was expected and what came.
    """
    if not (is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias) or transformed()):
        if isinstance(weight_offset, float) and weight_offset == 0:
            return _C.layer_norm(input, normalized_shape, weight, bias, eps)  # a keyword would take 0.2 us
        return _C.layer_norm(input, normalized_shape, weight, bias, eps, weight_offset=weight_offset)
    if is_compiling():
        norm = transforms.layer_norm if transforms.compiled() else torch.ops.normext.layer_norm
        return norm(input, normalized_shape, weight, bias, eps, weight_offset=weight_offset)
    if has_torch_function_variadic(input, weight, bias):
        tensors = (input, weight, bias)
        return handle_torch_function(
            layer_norm,
            tensors,
            input,
            normalized_shape,
            weight=weight,
            bias=bias,
            eps=eps,
            weight_offset=weight_offset,
        )
    return transforms.layer_norm(input, normalized_shape, weight, bias, eps, weight_offset=weight_offset)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    weight_offset: float = 0.0,
) -> Tensor:
    """Normalizes over the last dimensions: ``input / sqrt(mean(input ** 2) + eps) * (weight + weight_offset)``.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), equation 4.

    Args:
        input: ``[*, *normalized_shape]``; float64, float32, bfloat16 or float16; any strides.
        normalized_shape: sizes of the trailing dimensions to normalize over.
        weight: ``normalized_shape``, of input's dtype, or float32 where input is bfloat16 or float16.
        eps: added to the mean square. None stands for the epsilon of the dtype that is computed in, as in torch:
            ``torch.finfo(torch.float64).eps`` for float64, ``torch.finfo(torch.float32).eps`` for all others.
        weight_offset: added to the weight in the dtype that is computed in: 1 for Gemma's weights, which are trained
            around zero. Without a weight it changes nothing.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        ValueError: if input has fewer dimensions than normalized_shape.
        RuntimeError: if shapes, dtypes or devices do not fit; the message names what was expected and what came.

    Example:
        >>> normext.rms_norm(torch.tensor([3.0, 4.0]), [2], weight=torch.ones(2), eps=0.0)
        tensor([0.8485, 1.1314])
    """
    if not (is_dynamo_compiling() or has_torch_function_variadic(input, weight) or transformed()):
        if isinstance(weight_offset, float) and weight_offset == 0:
            return _C.rms_norm(input, normalized_shape, weight, eps)  # as layer_norm
        return _C.rms_norm(input, normalized_shape, weight, eps, weight_offset=weight_offset)
    if is_compiling():
        norm = transforms.rms_norm if transforms.compiled() else torch.ops.normext.rms_norm
        return norm(input, normalized_shape, weight, eps, weight_offset=weight_offset)
    if has_torch_function_variadic(input, weight):
        tensors = (input, weight)
        beyond = {"weight_offset": weight_offset} if weight_offset else {}  # unknown to torch's jagged tensors
        return handle_torch_function(rms_norm, tensors, input, normalized_shape, weight=weight, eps=eps, **beyond)
    return transforms.rms_norm(input, normalized_shape, weight, eps, weight_offset=weight_offset)


def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Adds, and normalizes the sum: ``sum = input + residual``, ``output = layer_norm(sum)``, in one pass over memory.

    The sum is rounded to the residual's dtype, and what is normalized is the rounded one: the results are those of the
    two operations run apart, on the CPU to the bit, with CUDA's kernels, of which others take sums, to some roundings.
    Backward, too, is one pass, over the gradients of both.

    Args:
        input: ``[*, *normalized_shape]``; float64, float32, bfloat16 or float16; any strides.
        residual: input's shape, and its dtype, or float32 where input is bfloat16 or float16.
        normalized_shape: sizes of the trailing dimensions to normalize over.
        weight: as :func:`layer_norm`'s.
        bias: likewise.
        eps: added to the variance.
        weight_offset: added to the weight in the dtype that is computed in.

    Returns:
        ``(output, sum)``, contiguous, of input's shape; output of input's dtype, and sum of residual's.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit; the message names what was expected and what came.

    Example:
        >>> x, residual = torch.tensor([1.0, 2.0]), torch.tensor([2.0, -1.0])
        >>> normext.add_layer_norm(x, residual, [2], eps=0.0)
        (tensor([ 1., -1.]), tensor([3., 1.]))
    """
    arguments = (input, residual, normalized_shape, weight, bias, eps)
    return _call(add_layer_norm, (input, residual, weight, bias), *arguments, weight_offset=weight_offset)


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Adds, and normalizes the sum: ``sum = input + residual``, ``output = rms_norm(sum)``, in one pass over memory.

    The sum is rounded to the residual's dtype, and what is normalized is the rounded one: the results are those of the
    two operations run apart, on the CPU to the bit, with CUDA's kernels, of which others take sums, to some roundings.
    Backward, too, is one pass, over the gradients of both.

    Args:
        input: ``[*, *normalized_shape]``; float64, float32, bfloat16 or float16; any strides.
        residual: input's shape, and its dtype, or float32 where input is bfloat16 or float16.
        normalized_shape: sizes of the trailing dimensions to normalize over.
        weight: as :func:`rms_norm`'s.
        eps: likewise.
        weight_offset: added to the weight in the dtype that is computed in.

    Returns:
        ``(output, sum)``, contiguous, of input's shape; output of input's dtype, and sum of residual's.

    Raises:
        ValueError: if input has fewer dimensions than normalized_shape.
        RuntimeError: if shapes, dtypes or devices do not fit; the message names what was expected and what came.

    Example:
        >>> x, residual = torch.tensor([1.0, 5.0]), torch.tensor([2.0, -1.0])
        >>> normext.add_rms_norm(x, residual, [2], eps=0.0)
        (tensor([0.8485, 1.1314]), tensor([3., 4.]))
    """
    arguments = (input, residual, normalized_shape, weight, eps)
    return _call(add_rms_norm, (input, residual, weight), *arguments, weight_offset=weight_offset)


def adaptive_layer_norm(input: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalizes over the last dimension, with a scale and a shift for each sample or token: AdaLN.

    ``(input - mean) / sqrt(var + eps) * (1 + scale) + shift``. Source: Peebles and Xie, "Scalable Diffusion Models with
    Transformers" (2022), section 3.2, whose modulation follows a LayerNorm without parameters.

    Args:
        input: ``[*, D]``; float64, float32, bfloat16 or float16; any strides.
        scale: for an input of ``[B, T, D]`` one of ``[B, D]`` or ``[B, 1, D]`` for each sample, ``[B, T, D]`` for each
            token; in general ``[*, D]``, whose leading dimensions broadcast to the first of input's: they are aligned
            at the left, not as in torch at the right. Of input's dtype, or float32 where input is bfloat16 or float16.
            Chunks of a modulation, such as ``m.chunk(6, dim=-1)``, are read in place.
        shift: like scale, and of the same dtype; either may have a shape of its own.
        eps: added to the variance.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit; the message names what was expected and what came.

    Example:
        >>> x, modulation = torch.randn(4, 256, 384), torch.randn(4, 6 * 384)
        >>> shift, scale, *_ = modulation.chunk(6, dim=-1)
        >>> normext.adaptive_layer_norm(x, scale, shift).shape
        torch.Size([4, 256, 384])
    """
    return _call(adaptive_layer_norm, (input, scale, shift), input, scale, shift, eps)


def adaptive_rms_norm(input: Tensor, scale: Tensor, shift: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Normalizes over the last dimension, with a scale, and a shift if given, for each sample or token.

    ``input / sqrt(mean(input ** 2) + eps) * (1 + scale) + shift``: :func:`adaptive_layer_norm` without the mean.

    Args:
        input: ``[*, D]``; float64, float32, bfloat16 or float16; any strides.
        scale: as :func:`adaptive_layer_norm`'s.
        shift: likewise, or None for none.
        eps: as :func:`rms_norm`'s.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit; the message names what was expected and what came.

    Example:
        >>> normext.adaptive_rms_norm(torch.tensor([3.0, 4.0]), torch.zeros(2), eps=0.0)
        tensor([0.8485, 1.1314])
    """
    return _call(adaptive_rms_norm, (input, scale, shift), input, scale, shift, eps)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Activation = None,
) -> Tensor:
    """Normalizes each channel: ``activation((input - mean) / sqrt(var + eps) * weight + bias + residual)``.

    Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1, with the biased variance. In training the
    statistics are the batch's, and ``running = (1 - momentum) * running + momentum * batch`` is updated in place, with
    the unbiased variance; in evaluation they are the running ones. A residual and an activation, such as a ResNet's
    blocks end with, are computed with the norm, and rounded once.

    Args:
        input: ``[N, C, *]``; float64, float32, bfloat16 or float16; any strides. Contiguous and channels_last data is
            read in place, other layouts are copied first.
        running_mean: ``[C]``, updated in place in training; required in evaluation.
        running_var: ``[C]``, likewise.
        weight: ``[C]``, of input's dtype, or float32 where input is bfloat16 or float16.
        bias: like weight.
        training: whether to use, and track, the batch's statistics.
        momentum: the weight of the batch in the running statistics.
        eps: added to the variance.
        residual: added to the norm's result; of input's shape and dtype. Read in place where it lies as input does.
        activation: what follows: None, "relu", "leaky_relu" (with a slope of 0.01), a pair ("leaky_relu", slope), or
            "silu". Backward needs no other tensors for it than the norm's own, and the residual.

    Returns:
        A tensor of input's shape, dtype and memory format.

    Raises:
        ValueError: in training with a single value per channel, if eps is out of its range, or for an activation there
            is none of.
        RuntimeError: if shapes, dtypes or devices do not fit; the message names what was expected and what came.

    Example:
        >>> x, residual = torch.tensor([[1.0], [5.0]]), torch.tensor([[0.5], [0.5]])
        >>> normext.batch_norm(x, None, None, training=True, eps=1e-9, residual=residual, activation="relu")
        tensor([[0.0000],
                [1.5000]])
    """
    plain = residual is None and activation is None
    if not (
        is_dynamo_compiling()
        or has_torch_function_variadic(input, running_mean, running_var, weight, bias, residual)
        or transformed()
    ):
        norm = _C.batch_norm
    elif is_compiling():
        if not isinstance(training, bool):  # an operator would take other things for one
            given = type(training).__name__
            raise TypeError(f"batch_norm(): argument 'training' (position 6) must be bool, not {given}")
        norm = transforms.batch_norm if transforms.compiled() else torch.ops.normext.batch_norm
    elif has_torch_function_variadic(input, running_mean, running_var, weight, bias, residual):
        tensors = (input, running_mean, running_var, weight, bias, residual)
        options: dict[str, Any] = {"training": training, "momentum": momentum, "eps": eps}
        if not plain:
            options |= {"residual": residual, "activation": activation}
        return handle_torch_function(batch_norm, tensors, *tensors[:3], weight=weight, bias=bias, **options)
    else:
        norm = transforms.batch_norm
    if plain:
        return norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    name, slope = parts(activation)
    fused: dict[str, Any] = {"residual": residual, "activation": name, "slope": slope}
    return norm(input, running_mean, running_var, weight, bias, training, momentum, eps, **fused)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation = None,
) -> Tensor:
    """Normalizes each group of channels of each sample: ``(input - mean) / sqrt(var + eps) * weight + bias``.

    Source: Wu and He, "Group Normalization" (2018), with the biased variance. A sample's result does not depend on the
    batch it is in.

    Args:
        input: ``[N, C, *]``; float64, float32, bfloat16 or float16; any strides. Contiguous and channels_last data is
            read in place, other layouts are copied first.
        num_groups: how many groups of as many channels each; it divides C.
        weight: ``[C]``, of input's dtype, or float32 where input is bfloat16 or float16.
        bias: like weight, and of the same dtype.
        eps: added to the variance.
        activation: what follows, computed with the norm: None, "relu", "leaky_relu" (with a slope of 0.01), a pair
            ("leaky_relu", slope), or "silu". Backward needs no other tensors for it than the norm's own.

    Returns:
        A tensor of input's shape, dtype and memory format.

    Raises:
        ValueError: if a group has a single value, or for an activation there is none of.
        RuntimeError: if shapes, dtypes or devices do not fit; the message names what was expected and what came.

    Example:
        >>> normext.group_norm(torch.tensor([[1.0, 3.0, 5.0, 5.0]]), 2, activation="relu")
        tensor([[0.0000, 1.0000, 0.0000, 0.0000]])
    """
    if not (is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias) or transformed()):
        if activation is None:
            return _C.group_norm(input, num_groups, weight, bias, eps)  # as layer_norm
        norm: Callable[..., Any] = _C.group_norm
    elif is_compiling():
        norm = transforms.group_norm if transforms.compiled() else torch.ops.normext.group_norm
    elif has_torch_function_variadic(input, weight, bias):
        tensors = (input, weight, bias)
        beyond = {} if activation is None else {"activation": activation}
        return handle_torch_function(
            group_norm, tensors, input, num_groups, weight=weight, bias=bias, eps=eps, **beyond
        )
    else:
        norm = transforms.group_norm
    name, slope = parts(activation)
    return norm(input, num_groups, weight, bias, eps, activation=name, slope=slope)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: Activation = None,
) -> Tensor:
    """Normalizes each channel of each sample: ``(input - mean) / sqrt(var + eps) * weight + bias``.

    Source: Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast Stylization"
    (2016), with the biased variance. A sample's result does not depend on the batch it is in. Given running statistics,
    ``running = (1 - momentum) * running + momentum * batch`` is updated in place, where ``batch`` is the mean over the
    samples of their means and of their unbiased variances. Without ``use_input_stats`` the running ones are used.

    Args:
        input: ``[N, C, *]``; float64, float32, bfloat16 or float16; any strides. Contiguous and channels_last data is
            read in place, other layouts are copied first.
        running_mean: ``[C]``, updated in place if use_input_stats, and required otherwise.
        running_var: ``[C]``, likewise.
        weight: ``[C]``, of input's dtype, or float32 where input is bfloat16 or float16.
        bias: like weight.
        use_input_stats: whether to use, and track, the input's statistics.
        momentum: the weight of the batch in the running statistics.
        eps: added to the variance.
        activation: as in :func:`group_norm`.

    Returns:
        A tensor of input's shape, dtype and memory format.

    Raises:
        ValueError: with a single spatial element where its statistics are to be used, or for an activation there is
            none of.
        RuntimeError: if shapes, dtypes or devices do not fit; the message names what was expected and what came.

    Example:
        >>> normext.instance_norm(torch.tensor([[[1.0, 3.0], [5.0, 6.0]]]), eps=0.0)
        tensor([[[-1.,  1.],
                 [-1.,  1.]]])
    """
    name, slope = parts(activation)
    if is_compiling():
        norm = transforms.instance_norm if transforms.compiled() else torch.ops.normext.instance_norm
    elif has_torch_function_variadic(input, running_mean, running_var, weight, bias):
        tensors = (input, running_mean, running_var, weight, bias)
        beyond = {} if activation is None else {"activation": activation}
        return handle_torch_function(
            instance_norm,
            tensors,
            input,
            running_mean=running_mean,
            running_var=running_var,
            weight=weight,
            bias=bias,
            use_input_stats=use_input_stats,
            momentum=momentum,
            eps=eps,
            **beyond,
        )
    else:
        norm = transforms.instance_norm if transformed() else _C.instance_norm
    return norm(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        use_input_stats,
        momentum,
        eps,
        activation=name,
        slope=slope,
    )
