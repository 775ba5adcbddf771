"""The norms in wide arithmetic, after their definitions, and how far from them a result may lie.

Independent of torch: numpy in float64, and in extended precision where the tensors themselves are float64. Every
tolerance of the suite is derived in the table below, from the dtype and the length of the reductions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# ---------------------------------------------------------------------------------------------------------------------
# The tolerance table. Unit: one ulp, that is torch.finfo(dtype).eps times the magnitude named beside each entry.
# "Statistics' dtype" is that of mean and rstd, in which the arithmetic is done too: float32 for half tensors.
STATISTICS_DTYPE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
# What normext promises: float64 arithmetic, rounded. Half an ulp is the rounding itself, the rest leaves room for short
# float32 partial sums merged in float64. Neither grows with the row: a sum in float32, or E[x^2] - E[x]^2, fails. Only
# float64 tensors, which have nothing wider to be summed in, add reduction() to them.
MEAN = 1.0  # of the row's root mean square: deviations' errors, not the (possibly cancelled) mean's own size, count
CENTER = (
    1.0  # of the deviation: what is subtracted is the mean before it is rounded, however large beside the deviation
)
VARIANCE = 2.0  # of the variance: all its terms have one sign
RSTD = VARIANCE / 2 + 1  # of rstd = (var + eps)^(-1/2): half the variance's error, then a root and a division
# xhat = (x - mean) * rstd, times weight, plus bias: half an ulp each.
AFFINE = 2.0
# The result is rounded to its own dtype once.
ROUNDING = 0.5


def reduction(terms: int) -> float:
    """Ulps, of the sum of magnitudes, that a gradient's sum of so many rounded terms may be off.

    A tree of depth log2(n) rounds each term that often, by half an ulp (Higham, "Accuracy and Stability of Numerical
    Algorithms", section 4.2); each term is a product of rounded factors, hence the constant.
    """
    return AFFINE + ROUNDING * math.log2(max(terms, 1))


# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """A result: its value in wide arithmetic, the error allowed to each element, and the dtype it has to have."""

    value: np.ndarray
    error: np.ndarray
    dtype: torch.dtype

    def reshape(self, shape: Sequence[int]) -> "Expected":
        """The same in another shape."""
        return Expected(self.value.reshape(shape), self.error.reshape(shape), self.dtype)


@dataclass(frozen=True)
class Norm:
    """All that a norm computes. Statistics have the size of their rows or channels; gradients are None if not asked."""

    output: Expected
    mean: Expected
    rstd: Expected
    var: Expected
    grad_input: Expected | None = None
    grad_weight: Expected | None = None
    grad_bias: Expected | None = None


def row_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    grad_output: Tensor | None = None,
    weight_offset: float = 0.0,
    centered: bool = True,
) -> Norm:
    """LayerNorm, or RMSNorm if not centered: statistics over the last dimensions, parameters along them."""
    leading = input.dim() - len(normalized_shape)
    rows, columns = tuple(range(leading)), tuple(range(leading, input.dim()))
    return _norm(input, columns, rows, weight, bias, eps, None, grad_output, weight_offset, centered)


def adaptive_norm(
    input: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    grad_output: Tensor | None = None,
    centered: bool = True,
) -> Norm:
    """The same with a scale and a shift that have as many dimensions as the input, of size 1 where they are shared."""
    shared = tuple(i for i, size in enumerate(scale.shape) if size == 1)
    return _norm(input, (input.dim() - 1,), shared, scale, shift, eps, None, grad_output, 1.0, centered)


def plus(gradient: Expected, added: Tensor, dtype: torch.dtype) -> Expected:
    """A gradient to which another one is added before it is rounded to ``dtype``."""
    value = gradient.value + _wide(added, gradient.value.dtype)
    ulp = torch.finfo(STATISTICS_DTYPE[gradient.dtype]).eps
    kept = gradient.error - rounding(gradient.value, gradient.dtype)  # it is not rounded before
    return _expected(value, kept + ROUNDING * ulp * (abs(gradient.value) + abs(value)), dtype)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    grad_output: Tensor | None = None,
) -> Norm:
    """LayerNorm."""
    return row_norm(input, normalized_shape, weight, bias, eps, grad_output)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    grad_output: Tensor | None = None,
) -> Norm:
    """BatchNorm: statistics over all dimensions but the second, the batch's if no running ones are given."""
    others = tuple(i for i in range(input.dim()) if i != 1)
    running = None if running_mean is None or running_var is None else (running_mean, running_var)
    return _norm(input, others, others, weight, bias, eps, running, grad_output)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    grad_output: Tensor | None = None,
) -> Norm:
    """GroupNorm: statistics over all dimensions of ``[N, groups, channels of a group, *]`` but the first two."""

    def grouped(t: Tensor) -> Tensor:
        return t.unflatten(1, (num_groups, -1))

    x = grouped(input)
    shared = (0, *range(3, x.dim()))
    dy = None if grad_output is None else grouped(grad_output)
    norm = _norm(x, tuple(range(2, x.dim())), shared, weight, bias, eps, None, dy)
    shapes = dict.fromkeys(("output", "grad_input"), input.shape)
    shapes |= dict.fromkeys(("mean", "rstd", "var"), x.shape[:2])
    shapes |= dict.fromkeys(("grad_weight", "grad_bias"), input.shape[1:2])
    found = {name: getattr(norm, name) for name in shapes}
    return Norm(**{name: None if e is None else e.reshape(shapes[name]) for name, e in found.items()})


def running_statistic(old: Tensor, batch: Expected, momentum: float) -> Expected:
    """(1 - momentum) * old + momentum * batch, in old's dtype."""
    kept, added = (1 - momentum) * _wide(old), momentum * batch.value
    ulp = torch.finfo(batch.dtype).eps
    error = abs(momentum) * batch.error + ulp * AFFINE * (abs(kept) + abs(added))
    return _expected(kept + added, error, old.dtype)


def unbiased(var: Expected, count: int) -> Expected:
    """The sample variance of ``count`` values, from the biased one."""
    return Expected(var.value * count / (count - 1), var.error * count / (count - 1), var.dtype)


def assert_close(actual: Tensor, expected: Expected | None) -> None:
    """Dtype and shape equal; NaN and infinities in the same places; every finite element within its allowed error."""
    if expected is None:
        raise ValueError("the reference was not asked for this result")
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.value.shape
    got = _wide(actual)
    finite = np.isfinite(expected.value)
    np.testing.assert_array_equal(got[~finite], expected.value[~finite])
    error, allowed = abs(got[finite] - expected.value[finite]), expected.error[finite]
    wrong = ~(error <= allowed)  # NaN is wrong too
    if wrong.any():
        with np.errstate(divide="ignore"):
            excess = np.where(wrong, error / allowed, 0)
        worst = np.nanargmax(np.where(np.isnan(excess), np.inf, excess))
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} elements are off; the worst, number {worst}, is {got[finite][worst]!r} and "
            f"should be {expected.value[finite][worst]!r}: {excess[worst]:.3g} times the error allowed"
        )


def assert_same_special_values(actual: Tensor, expected: Tensor) -> None:
    """NaN and both infinities are in the same places."""
    for places in (Tensor.isnan, Tensor.isposinf, Tensor.isneginf):
        assert torch.equal(places(actual), places(expected))


def _norm(
    input: Tensor,
    reduced: tuple[int, ...],
    shared: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running: tuple[Tensor, Tensor] | None,
    grad_output: Tensor | None,
    weight_offset: float = 0.0,
    centered: bool = True,
) -> Norm:
    """Normalizes over the dimensions ``reduced``; a parameter is shared along the dimensions ``shared``.

    If not ``centered``, zero stands in the place of the mean.
    """
    x = _wide(input)
    stat = STATISTICS_DTYPE[input.dtype]
    ulp = torch.finfo(stat).eps
    along = [1 if i in shared else size for i, size in enumerate(x.shape)]  # a parameter's shape against x
    w = np.ones(along, x.dtype) if weight is None else _wide(weight, x.dtype).reshape(along) + weight_offset
    b = np.zeros(along, x.dtype) if bias is None else _wide(bias, x.dtype).reshape(along)

    with np.errstate(all="ignore"):  # NaN, infinities and empty rows are cases like any other
        if running is None:
            mean = _mean(x, reduced)
            if not centered:
                mean = np.zeros_like(mean)
            var = _mean((x - mean) ** 2, reduced)
        else:
            mean, var = (_wide(t, x.dtype).reshape(along) for t in running)
        rstd = 1 / np.sqrt(var + eps)
        xhat = (x - mean) * rstd
        output = xhat * w + b

        count = math.prod(x.shape[i] for i in reduced)
        summing = reduction(count) if stat == torch.float64 else 0.0
        rms = np.hypot(mean, np.sqrt(var))
        mean_error = (MEAN + summing) * ulp * rms
        # What the mean's error does to every xhat of the row.
        shift = ulp * (CENTER + summing * rms * rstd) if centered else np.zeros_like(rstd)
        output_error = ulp * ((RSTD + summing + AFFINE) * abs(xhat * w) + AFFINE * abs(b)) + shift * abs(w)

        # LayerNorm's statistics keep the reduced dimensions as ones, BatchNorm's are [channels].
        flat = mean.size if reduced == shared else mean.shape
        result = {
            "output": _expected(output, output_error, input.dtype),
            "mean": _expected(mean.reshape(flat), mean_error.reshape(flat), stat),
            "rstd": _expected(rstd.reshape(flat), ((RSTD + summing) * ulp * rstd).reshape(flat), stat),
            "var": _expected(var.reshape(flat), ((VARIANCE + summing) * ulp * var).reshape(flat), stat),
        }
        if grad_output is None:
            return Norm(**result)

        dy = _wide(grad_output, x.dtype)
        g = dy * w
        if running is None:
            mean_g, mean_gx = _mean(g, reduced), _mean(g * xhat, reduced)
            if not centered:
                mean_g = np.zeros_like(mean_g)
            summing = reduction(count) * ulp
            terms = abs(g) + abs(mean_g) + abs(xhat * mean_gx)
            sums = _mean(abs(g), reduced) + abs(xhat) * _mean(abs(g * xhat), reduced)
            shifted = shift * (abs(mean_gx) + (abs(xhat) + shift) * abs(mean_g))
            dx = rstd * (g - mean_g - xhat * mean_gx)
        else:
            summing, sums, shifted, terms = 0.0, 0.0, 0.0, abs(g)
            dx = rstd * g
        dx_error = rstd * (ulp * (3 * RSTD + AFFINE) * terms + summing * sums + shifted)

        summing = reduction(math.prod(x.shape[i] for i in shared)) * ulp
        dw_error = (RSTD * ulp + summing) * _sum(abs(dy * xhat), shared) + _sum(shift * abs(dy), shared)
        size = [n for i, n in enumerate(x.shape) if i not in shared]
        parameter = weight if weight is not None else bias
        param_dtype = input.dtype if parameter is None else parameter.dtype
        return Norm(
            **result,
            grad_input=_expected(dx, dx_error, input.dtype),
            grad_weight=_expected(_sum(dy * xhat, shared).reshape(size), dw_error.reshape(size), param_dtype),
            grad_bias=_expected(
                _sum(dy, shared).reshape(size), (summing * _sum(abs(dy), shared)).reshape(size), param_dtype
            ),
        )


def _expected(value: np.ndarray, error: np.ndarray, dtype: torch.dtype) -> Expected:
    """Adds the rounding to ``dtype``, whose least steps are those of its subnormals and whose greatest is infinity."""
    most = torch.finfo(dtype).max
    return Expected(
        np.where(abs(value) > most, np.copysign(np.inf, value), value), error + rounding(value, dtype), dtype
    )


def rounding(value: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The error of rounding to ``dtype``."""
    info = torch.finfo(dtype)
    return ROUNDING * np.maximum(info.eps * abs(value), info.smallest_normal * info.eps)


def _wide(tensor: Tensor, dtype: np.dtype | None = None) -> np.ndarray:
    if dtype is None:
        dtype = np.dtype(np.longdouble if tensor.dtype == torch.float64 else np.float64)
    return tensor.detach().cpu().double().numpy().astype(dtype)


def _sum(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return x.sum(axis=axes, keepdims=True) if axes else x


def _mean(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return _sum(x, axes) / math.prod(x.shape[i] for i in axes)
