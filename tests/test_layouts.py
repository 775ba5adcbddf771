"""Tensors that are not dense: nested ones, and oneDNN's."""

import copy
from collections.abc import Callable

import pytest
import torch
from inputs import leaves, parameters, running, values
from norms import ADAPTIVE_NORMS, ADD_NORMS, RowNorm, norms, row_norms
from torch import Tensor, nn
from torch.utils.mkldnn import to_mkldnn

import normext

layouts = pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=["strided", "jagged"])


def nested(layout: torch.layout, *lengths: int, inner: tuple[int, ...] = (5,)) -> Tensor:
    """A nested tensor of rows of ``inner``, that requires gradients."""
    return torch.nested.nested_tensor([values(n, *inner) for n in lengths], layout=layout, requires_grad=True)


def flat(tensor: Tensor) -> Tensor:
    """The elements of a nested tensor, in order."""
    return torch.cat([t.flatten() for t in tensor.unbind()])


def error(function: Callable, *arguments: object) -> tuple[type, str]:
    """What a call raises."""
    with pytest.raises(Exception) as raised:
        function(*arguments)
    return raised.type, str(raised.value)


@layouts
@pytest.mark.parametrize(
    ("inner", "normalized_shape"), [((5,), [5]), ((4, 5), [5]), ((4, 5), [4, 5])], ids=["5", "4x5 over 5", "4x5"]
)
@row_norms
def test_nested_row_norm(
    norm: RowNorm, layout: torch.layout, inner: tuple[int, ...], normalized_shape: list[int]
) -> None:
    x = nested(layout, 2, 7, 3, inner=inner)
    affine = [t for t in leaves(*norm.parameters(*normalized_shape)) if t is not None]
    output = norm(x, normalized_shape, *affine, eps=1e-3)
    assert output.is_nested and output.layout is layout
    # Row by row: torch knows no RMSNorm of nested tensors.
    rows = [getattr(nn.functional, norm.name)(row, normalized_shape, *affine, eps=1e-3) for row in x.unbind()]
    results = []
    for y in (flat(output), torch.cat([row.flatten() for row in rows])):
        gradients = torch.autograd.grad(y.sin().sum(), [x, *affine])
        results.append([y, flat(gradients[0]), *gradients[1:]])
    torch.testing.assert_close(*results)


@layouts
@norms(ADD_NORMS)
def test_nested_add_norm(norm: RowNorm, layout: torch.layout) -> None:
    x, weight = nested(layout, 2, 7, 3), values(5).requires_grad_()
    function = getattr(normext, norm.name)
    together = [flat(t) for t in function(x, x.sin(), [5], weight)]
    rows = [function(row, row.sin(), [5], weight) for row in x.unbind()]
    results = []
    for y, total in (together, [torch.cat([pair[i].flatten() for pair in rows]) for i in (0, 1)]):
        gradients = torch.autograd.grad(y.sin().sum() + total.cos().sum(), [x, weight])
        results.append([y, total, flat(gradients[0]), gradients[1]])
    torch.testing.assert_close(*results)
    with pytest.raises(RuntimeError, match="expected input and residual of one layout"):
        function(x, nested(layout, 2, 6), [5]) if layout is torch.jagged else function(x, values(3, 5), [5])


@norms(ADAPTIVE_NORMS)
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=["strided", "jagged"])
@pytest.mark.parametrize("given", ["per sample", "per sample, aligned", "per token", "shared"])
def test_nested_adaptive_norm(norm: RowNorm, layout: torch.layout, given: str) -> None:
    function, x = getattr(normext, norm.name), nested(layout, 2, 7, 3)
    if given == "per token":
        scale = x.detach() * 0.5
    else:
        scale = values(*{"per sample": (3, 5), "per sample, aligned": (3, 1, 5), "shared": (5,)}[given])
    scale.requires_grad_()
    output = function(x, scale, scale)
    assert output.is_nested and output.layout is layout
    lines = [scale] * 3 if given == "shared" else scale.unbind()
    apart = [function(row, line, line) for row, line in zip(x.unbind(), lines, strict=True)]
    assert torch.equal(flat(output), torch.cat(apart).flatten())
    found = torch.autograd.grad(flat(output).sin().sum(), (x, scale))
    wanted = torch.autograd.grad(torch.cat(apart).flatten().sin().sum(), (x, scale))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(*(flat(t) if t.is_nested else t for t in (a, b)))
    if not norm.centered:
        assert torch.equal(function(x, scale).unbind()[1], function(x.unbind()[1], lines[1]))


@norms(ADAPTIVE_NORMS)
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=["strided", "jagged"])
def test_nested_adaptive_norm_of_other_samples_is_an_error(norm: RowNorm, layout: torch.layout) -> None:
    with pytest.raises(RuntimeError, match="expected scale and shift of"):
        getattr(normext, norm.name)(nested(layout, 2, 7, 3), values(2, 5), values(2, 5))


@layouts
def test_nested_layer_norm_without_gradients(layout: torch.layout) -> None:
    module, x = normext.LayerNorm(5), nested(layout, 2, 7)
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            torch.testing.assert_close(flat(module(x)).view(-1, 5), module(flat(x).view(-1, 5)))


@layouts
def test_nested_layer_norm_without_parameters(layout: torch.layout) -> None:
    x = nested(layout, 2, 7)
    output = normext.layer_norm(x, [5])
    torch.testing.assert_close(flat(output).view(-1, 5), normext.layer_norm(flat(x).view(-1, 5), [5]))


def test_jagged_keeps_its_structure() -> None:
    x = nested(torch.jagged, 2, 7, inner=(4, 5))
    output = normext.layer_norm(x, [5])
    assert output.shape == x.shape  # the same ragged dimension: the two add up
    torch.testing.assert_close(flat(x + output), flat(x) + flat(output))
    torch.testing.assert_close(flat(normext.layer_norm(x.transpose(1, 2), [5]).transpose(1, 2)), flat(output))
    holes = torch.nested.narrow(values(2, 6, 5), 1, torch.tensor([0, 2]), torch.tensor([3, 4]), layout=torch.jagged)
    for row, expected in zip(normext.layer_norm(holes, [5]).unbind(), holes.unbind(), strict=True):
        torch.testing.assert_close(row, normext.layer_norm(expected, [5]))


def test_jagged_compiled() -> None:
    torch.compiler.reset()
    module = normext.LayerNorm(5)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    for lengths in ((2, 7), (3, 1, 4)):
        x = nested(torch.jagged, *lengths)
        outputs = compiled(x), module(x)
        torch.testing.assert_close(outputs[0].values(), outputs[1].values())
        gradients = [torch.autograd.grad(output.values().sin().sum(), x)[0] for output in outputs]
        torch.testing.assert_close(gradients[0].values(), gradients[1].values())


@pytest.mark.parametrize("normalized_shape", [[4], [3, 5], [2, 3, 5], []], ids=str)
def test_jagged_errors_are_torchs(normalized_shape: list[int]) -> None:
    x = nested(torch.jagged, 2, 3)
    theirs = error(nn.functional.layer_norm, x, normalized_shape)
    assert error(normext.layer_norm, x, normalized_shape)[0] is theirs[0]


def test_layer_norm_over_the_ragged_dimension() -> None:
    x = nested(torch.jagged, 2, 3)
    ours, theirs = (library.layer_norm(x, x.shape[1:]) for library in (normext, nn.functional))
    torch.testing.assert_close(ours.values(), theirs.values())


@layouts
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_nested_tensors_is_torchs_error(layout: torch.layout, training: bool) -> None:
    x, statistics = nested(layout, 2, 3), running(5)
    assert error(normext.batch_norm, x, *statistics, None, None, training) == error(
        nn.functional.batch_norm, x, *statistics, None, None, training
    )


# oneDNN's layout


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 3, 5, 2, 2)], ids=["2d", "3d"])
def test_mkldnn_batch_norm(shape: tuple[int, ...], inference: bool) -> None:
    x, statistics, affine = values(*shape), running(3), parameters((True, True), 3)
    with torch.inference_mode(inference):
        output = normext.batch_norm(x.to_mkldnn(), *statistics, *affine)
        assert output.layout is torch._mkldnn
        torch.testing.assert_close(output.to_dense(), normext.batch_norm(x, *statistics, *affine))
        packed = [t.to_mkldnn() for t in (x, *statistics, *affine)]
        torch.testing.assert_close(normext.batch_norm(*packed).to_dense(), output.to_dense())


def test_mkldnn_models() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), normext.BatchNorm2d(4), nn.ReLU()).eval()
    x = values(2, 3, 6, 6)
    torch.testing.assert_close(to_mkldnn(copy.deepcopy(model))(x.to_mkldnn()).to_dense(), model(x))
    packed = copy.deepcopy(model)
    packed[0] = to_mkldnn(packed[0])
    torch.testing.assert_close(packed(x.to_mkldnn()).to_dense(), model(x))


def test_mkldnn_training_is_torchs() -> None:
    x, grad_output = values(4, 3, 5, 6), values(4, 3, 5, 6)
    results = []
    for library in (normext, nn.functional):
        torch.manual_seed(0)
        leaf, statistics = x.clone().requires_grad_(), running(3)
        output = library.batch_norm(leaf.to_mkldnn(), *statistics, *parameters((True, True), 3), training=True)
        output.to_dense().backward(grad_output)
        results.append((output.to_dense(), leaf.grad, *statistics))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5)], ids=["1d", "1d of rows"])
def test_mkldnn_errors_are_torchs(shape: tuple[int, ...]) -> None:
    x, weight = values(*shape).to_mkldnn(), torch.ones(shape[-1])
    arguments = x, *running(3), *parameters((True, True), 3)
    assert error(normext.batch_norm, *arguments) == error(nn.functional.batch_norm, *arguments)
    arguments = x, weight.shape, weight, weight
    assert error(normext.layer_norm, *arguments) == error(nn.functional.layer_norm, *arguments)
