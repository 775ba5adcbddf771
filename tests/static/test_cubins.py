"""What nvcc makes of the CUDA kernels: registers, local memory, and how data is moved. No GPU is needed.

The compiler is free to undo what the sources mean, and says nothing. Rules hold for every kernel. What a family of
kernels takes at most, in all its instantiations, stands in cubins.json, and changes only on purpose:

    python tests/static/test_cubins.py --update

That the tests find what they are for was tried with faults planted in LayerNorm's sources, one at a time:

- store_vector() stores its elements one by one; Pack::load() loads them so: no vectors where some are expected;
- RowPart::load() looks at each vector before it loads the next: fewer on the way;
- a row's values are indexed by the thread's number: local memory;
- the backward kernel without launch bounds takes 162 registers, more than its grid counts on; with bounds for twice
  the blocks it spills;
- warp_sum() without shuffles, GroupSum with a barrier in kernels of a warp, a cluster that reads its own sums only;
- the last sum of the weight's gradient is an atomic addition.

Nobody had to plant these, which the first run found: stores of 16 bytes that the compiler had cut into four of 4, and
tiles whose loads each waited for the one before, since their values were widened, or stashed, as they came.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from disassembly import ARCHITECTURES, CUBINS, ROOT, SOURCES, Kernel, kernels, nvcc_version, run

sys.path.insert(0, str(ROOT / "tests" / "emu"))
from toolkit import PACKAGES, cuda_include

TABLE = Path(__file__).with_name("cubins.json")

# Each takes minutes of nvcc: all but one are left to -m slow.
every_architecture = pytest.mark.parametrize(
    "architecture", [a if a == "sm_90" else pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES]
)

VECTOR_LOAD, NARROW_LOAD = r"LDG\S*\.128", r"LDG(?!\S*\.128)"
VECTOR_STORE, NARROW_STORE = r"STG\S*\.128", r"STG(?!\S*\.128)"
SHUFFLE, BARRIER, CLUSTER_BARRIER = r"SHFL\.BFLY", r"BAR\.SYNC", r"UCGABAR_WAIT"
GENERIC_LOAD, GENERIC_STORE = r"LD(\.| )", r"ST(\.| )"

# What is known to break a rule: the rule, an architecture, a pattern of kernels, and what is wrong. An entry that no
# kernel needs fails.
KNOWN: list[tuple[str, str, str, str]] = [
    (
        "no_local_memory",
        "sm_90",
        r"sum_planes_kernel<bf16, ActivatedGradientSums<float, 2>, 8, ActivatedInputs<bf16, 2>, GroupSaved<bf16>>",
        "what the activation's derivative needs is two values more than registers have room for",
    ),
    (
        "no_local_memory",
        "sm_100",
        r"sum_columns_kernel<double, ActivatedColumnGradients<double, 3>, 1, Columns",
        "three inputs of float64 are two values more than 64 registers have room for",
    ),
]


# -------------------------------------------------------------------------------------------------- instantiations
def size_of(dtype: str) -> int:
    return {"double": 8, "float": 4}.get(dtype, 2)


class Shape:
    """What a kernel's template arguments say, by the meaning they have in csrc/cuda."""

    def __init__(self, kernel: Kernel) -> None:
        self.name, arguments = kernel.name, kernel.arguments
        self.dtype = arguments[0]
        self.vector = 16 // size_of(self.dtype)
        self.half = size_of(self.dtype) == 2
        self.wide = 2 if self.half else 1  # vectors of the compute type in a vector of elements
        self.is_row = self.name.startswith("row_norm")
        self.centered = "Uncentered" not in arguments
        self.is_long = self.name.startswith(("long_", "add_rows"))
        self.is_onchip = self.name.endswith("onchip_kernel")
        self.is_ring = self.name.startswith("ring_")
        self.is_tiled = re.match("sum_(planes|columns|rows)|map_(planes|columns)", self.name) is not None
        if self.is_row:  # type, statistics, source, lanes, vectors; backward: whether by clusters; whether aligned
            self.cluster = self.name == "row_norm_backward_kernel" and arguments[5] == "true"
        else:
            self.cluster = arguments[-1] == "true"
        # Of blocks with rows of their own, which add up their sums for weight and bias through each other's memory.
        self.is_paired = self.name == "ring_backward_kernel" and not self.cluster
        self.reads_peers = self.is_paired or (self.cluster and not self.name.startswith("ring_"))
        self.aligned = not self.is_row or arguments[-1] == "true"
        self.lanes, self.vectors = (int(arguments[3]), int(arguments[4])) if self.is_row else (0, 0)
        self.adds = "SumRows" in kernel.key
        # Vectors of a sum's type, which may be float32, in a vector of half elements.
        mixed = "SumRows<float>" in kernel.key or (self.is_long and arguments[1] == "float")
        self.of_sum = 2 if self.half and mixed else 1
        self.threads = self.threads_of_block(arguments)
        self.function = arguments[1] if self.is_tiled else ""  # the sum, or the map
        self.access = int(arguments[2 if self.is_tiled else 1]) if self.is_tiled or self.is_onchip else 1
        if self.is_onchip:
            self.inputs = 2 if "backward" in self.name else 1
        elif self.function.startswith("Activated"):  # an activation, which a residual may come before, said by a number
            self.inputs = 3 if self.function.startswith("ActivatedGradients<") else int(self.function[-2])
        else:
            two = ("GradientSums", "UncenteredGradientSums", "ColumnGradients", "TrainingGradient")
            self.inputs = 2 if self.function.startswith(two) else 1
        # Moments take two, gradients three; those of rows that are not centered one.
        self.sums = 1 if self.function.startswith(("SquareSums", "UncenteredGradientSums")) else min(self.inputs, 2) + 1
        self.is_group = self.name.startswith("group_norm")
        self.copies = self.name == "group_norm_backward_onchip_kernel"  # to shared memory, past the registers
        self.parameters = 2 if self.centered or self.is_long else 1  # a row's: weight and bias, or the weight
        self.statistics = 2 if self.centered else 1  # mean and rstd, or rstd
        self.row_sums = 3 if self.centered else 1  # forward: the mean's, then two; backward: all at once
        self.source = arguments[-2] if self.name in ("sum_planes_kernel", "sum_rows_kernel") else ""
        self.coefficients = arguments[-1] if self.is_tiled else ""

    def threads_of_block(self, arguments: list[str]) -> int:
        if self.is_row:
            return max(self.lanes, 128)  # kRowThreads
        if self.is_onchip:
            return int(arguments[2])
        if self.is_ring:  # kRingThreads, kRingBackwardThreads: of one block or of several
            return 512 if "backward" in self.name else 1024
        if self.name == "sum_partials_kernel":
            return 512
        return 128 if re.match("finish|update|sum_columns|group_norm_(finish|parameters)", self.name) else 256


# -------------------------------------------------------------------------------------------------- rules
Rule = Callable[[Kernel, str], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(check: Rule) -> Rule:
    """Registers what yields a sentence for each thing that is wrong with a kernel on an architecture."""
    RULES[check.__name__] = check
    return check


def at_least(kernel: Kernel, least: int, what: str, pattern: str) -> Iterator[str]:
    if (count := kernel.count(pattern)) < least:
        yield f"{count} {what}, at least {least} expected"


def at_most(kernel: Kernel, most: int, what: str, pattern: str) -> Iterator[str]:
    if (count := kernel.count(pattern)) > most:
        yield f"{count} {what}, at most {most} expected"


@rule
def no_local_memory(kernel: Kernel, _: str) -> Iterator[str]:
    """Spilled registers, and arrays that are indexed by what is known at run time only, lie in memory."""
    if kernel.stack or kernel.spills:
        yield f"{kernel.stack} bytes of local memory, {kernel.spills} bytes spilled"
    yield from at_most(kernel, 0, "accesses of local memory", "LDL|STL")


@rule
def no_atomics(kernel: Kernel, _: str) -> Iterator[str]:
    """They come in another order on every run. Rings forward draw a row's number so: at first, and for a free stage.

    Clusters do not.
    """
    drawn = 2 if kernel.name == "ring_forward_kernel" and not Shape(kernel).cluster else 0
    yield from at_most(kernel, drawn, "atomics", r"ATOM|RED(\.|G|S|UX)")


@rule
def no_generic_accesses(kernel: Kernel, architecture: str) -> Iterator[str]:
    """Accesses whose address space is found out at run time are slower. A peer's shared memory alone is read so."""
    shape = Shape(kernel)
    yield from at_most(kernel, 0, "stores to an unknown address space", GENERIC_STORE)
    if not shape.reads_peers or architecture == "sm_80":
        yield from at_most(kernel, 0, "loads from an unknown address space", GENERIC_LOAD)


@cache
def row_launches() -> dict[str, list[int]]:
    """The kernels of rows in csrc/cuda's launch tables, and blocks an SM is to have: before sm_100, from there on."""
    program = CUBINS / "launches"
    include = cuda_include()
    if not include:
        pytest.skip(f"no CUDA headers found: pip install {PACKAGES}")
    flags = ["-std=c++20", "-fno-strict-aliasing", f"-I{SOURCES}", f"-I{ROOT / 'tests' / 'emu'}", "-isystem", include]
    CUBINS.mkdir(parents=True, exist_ok=True)
    run(os.environ.get("CXX", "g++"), *flags, Path(__file__).with_name("launches.cpp"), "-o", program)
    lines = [line.rpartition(": ") for line in run(program).splitlines()]
    return {key: [int(count) for count in blocks.split()] for key, _, blocks in lines}


def test_every_launch_has_a_kernel() -> None:
    """And every kernel a launch that it is for."""
    compiled = {key for key in kernels("sm_90") if key.startswith("row_norm")}
    assert compiled == row_launches().keys()


# Blocks that are to fit on an SM together: what csrc/cuda plans by __launch_bounds__, or by the grids it launches.
def planned_blocks(kernel: Kernel, shape: Shape, architecture: str) -> int:
    if shape.is_row:
        return row_launches()[kernel.key][architecture == "sm_100"]
    if shape.is_group and shape.is_onchip:  # kGroupBlocks
        return {32: 16, 128: 5, 256: 2, 512: 1}[shape.threads]
    if shape.is_onchip:  # kOnChipBlocks
        return {128: 5, 256: 2 if architecture == "sm_100" or shape.dtype == "half" else 3, 512: 1}[shape.threads]
    if shape.name == "sum_columns_kernel":
        if shape.access > 1 and shape.function.startswith("Activated"):  # kSumColumnBlocks
            return 4 if shape.inputs == 2 else 3
        return 8 if shape.access == 1 else 6 if shape.sums * shape.access == 16 else 5
    if shape.name == "map_columns_kernel":
        return 3 if shape.inputs == 1 else 2  # kMapColumnBlocks
    if re.match("finish_|group_norm_(finish|parameters)", shape.name):
        return 4  # kFinishBlocks
    return 1 if shape.is_ring else 2


@rule
def registers_as_planned(kernel: Kernel, architecture: str) -> Iterator[str]:
    """An SM has 65536, of which a thread gets a multiple of eight."""
    shape = Shape(kernel)
    blocks = planned_blocks(kernel, shape, architecture)
    if blocks * shape.threads * math.ceil(kernel.registers / 8) * 8 > 65536:
        yield f"{kernel.registers} registers, too many for {blocks} blocks of {shape.threads} threads on an SM"


class Accesses:
    """Vectors a kernel loads and stores, and at most how much beside them: by its source, where nothing is doubled.

    Long rows have a way for vectors and one, element by element, for rows that are not aligned: both are in the kernel.
    """

    def __init__(self, shape: Shape) -> None:
        vector, wide = shape.vector, shape.wide
        # Parameters of half rows are of their own dtype, or float32: one vector and two.
        parameter_vectors, parameter_elements = (3, 2 * vector) if shape.half else (1, vector)
        self.loads = self.stores = self.narrow_loads = self.narrow_stores = 0
        # Copies of parameters to shared memory: loops, by vectors and element by element, for each dtype they may have;
        # the same for weight and bias.
        copies = 2 if shape.half else 1
        rows = 1 + shape.of_sum if shape.adds else 1  # vectors of input, and residual
        if shape.name == "row_norm_forward_kernel":
            # The first row and the next one; parameters; of both rows, the first value.
            self.loads = 2 * rows * shape.vectors + copies
            self.narrow_loads = (2 * (1 + shape.adds) if shape.centered else 0) + copies * 3
            self.stores, self.narrow_stores = rows * shape.vectors, shape.statistics  # output, sum
        elif shape.name == "row_norm_backward_kernel":
            # grad_output and input, of the first row and the next one; or with the gradient of the sum, of one row.
            self.loads = shape.vectors * (1 + 2 * shape.of_sum if shape.adds else 2 * 2) + copies
            self.narrow_loads = 2 * shape.statistics + copies * 3
            # grad_input; a parameter's sums, or gradients in a half type: weight's and bias's by the same code.
            self.stores = shape.vectors * (1 + wide + shape.half)
        elif shape.name == "add_rows_kernel":
            self.loads, self.narrow_loads = 1 + shape.of_sum, 2 * vector
            self.stores, self.narrow_stores = shape.of_sum, vector
        elif shape.name == "long_forward_kernel":
            self.loads = shape.of_sum + 2 * parameter_vectors
            self.narrow_loads = vector + 2 * parameter_elements + shape.row_sums  # and coefficients
            self.stores, self.narrow_stores = 1, vector
        elif shape.name == "long_backward_kernel":
            self.loads = 1 + 2 * shape.of_sum + parameter_vectors
            self.narrow_loads = 3 * vector + parameter_elements + shape.row_sums + shape.statistics
            self.stores = 1 + 2 * (wide + shape.half)
            self.narrow_stores = (1 + (shape.of_sum > 1) + 2 * (1 + shape.half)) * vector
        elif shape.is_onchip:
            self.of_channels(shape)
            self.loads, self.stores = 2 if shape.copies else 4 * shape.inputs, 1
        elif shape.name == "sum_columns_kernel":
            self.loads = 8
            # Where a column's sums start from, of two columns a thread: two values, or chosen from; as often as the
            # compiler doubles the code. And elements that are counted again.
            self.narrow_loads = math.inf if shape.function.startswith("Activated") else 2 * 2 * 4 + 1
            self.narrow_stores = math.inf  # sums alone, in loops that the compiler may unroll
        elif shape.name in ("sum_planes_kernel", "sum_rows_kernel"):
            self.loads, self.narrow_stores = self.tile(shape) * shape.inputs, shape.sums
            known = ("Shift", "RowShift", "Saved", "Origin")
            self.narrow_loads = 2 if shape.coefficients.startswith(known) else math.inf
        elif shape.is_tiled:
            self.of_channels(shape)
            self.loads, self.stores = self.tile(shape) * shape.inputs, self.tile(shape)
            if shape.name == "map_columns_kernel":  # a column a thread
                # The compiler doubles the code of those that are written as well, as often as it likes.
                doubled = math.inf if shape.coefficients.startswith("Evaluation") else 1
                self.narrow_loads *= doubled
                self.narrow_stores *= doubled if self.narrow_stores else 1

    def tile(self, shape: Shape) -> int:
        """Vectors of each input that are on their way together."""
        return 4 if shape.inputs < 3 else 2

    def of_channels(self, shape: Shape) -> None:
        """A channel's parameters and statistics; half types have parameters of two dtypes."""
        parameter = 2 if shape.half else 1
        if shape.name == "batch_norm_forward_onchip_kernel":
            self.narrow_loads, self.narrow_stores = parameter * 3, 3  # the shift, weight, bias; mean, rstd, var
        elif shape.name == "batch_norm_backward_onchip_kernel":
            self.narrow_loads, self.narrow_stores = 2 * 2 + parameter, 2 * parameter  # mean, rstd: twice
        elif shape.is_group or shape.coefficients.startswith(("Activated", "Group")):
            # Parameters and statistics, of two layouts and dtypes, in loops that the compiler doubles as it likes.
            self.narrow_loads = self.narrow_stores = math.inf
        elif shape.coefficients.startswith("StoredCoefficients"):
            self.narrow_loads = int(shape.coefficients[-2])
        elif shape.coefficients.startswith("EvaluationCoefficients"):
            # Weight and bias, running statistics, or in their place three moments; mean, rstd, var are written.
            self.narrow_loads, self.narrow_stores = 4 * parameter + 3, 3
        else:
            self.narrow_loads = 1 + parameter  # rstd, weight


def moves_vectors(shape: Shape) -> bool:
    return (shape.is_row and shape.aligned) or shape.is_long or shape.access > 1


@rule
def data_moves_by_vectors(kernel: Kernel, _: str) -> Iterator[str]:
    """Every access that can be is 128 bits wide: all that are meant to be, and no narrower ones in their place."""
    shape = Shape(kernel)
    if not moves_vectors(shape):
        return
    expected = Accesses(shape)
    yield from at_least(kernel, expected.loads, "loads of 128 bits", VECTOR_LOAD)
    yield from at_most(kernel, expected.narrow_loads, "narrower loads", NARROW_LOAD)
    yield from at_least(kernel, expected.stores, "stores of 128 bits", VECTOR_STORE)
    yield from at_most(kernel, expected.narrow_stores, "narrower stores", NARROW_STORE)


@rule
def rings_are_filled_by_bulk_copies(kernel: Kernel, architecture: str) -> Iterator[str]:
    """And read by vectors, once for each sum and once for the output; parameters alone are loaded otherwise."""
    shape = Shape(kernel)
    if not shape.is_ring or architecture == "sm_80":
        yield from at_most(kernel, 0, "bulk copies", "UBLKCP")
        return
    backward = kernel.name == "ring_backward_kernel"
    parameters = 1 if backward else shape.parameters
    yield from at_least(kernel, 3 if backward else 2, "bulk copies", "UBLKCP")
    yield from at_least(kernel, 1, "waits for them", r"SYNCS\.PHASECHK")
    yield from at_most(kernel, parameters * (2 if shape.half else 1), "loads of 128 bits", VECTOR_LOAD)
    if backward:  # twice grad_output, input and weight; the gradient of the sum; and lines of sums are stored
        reads, stores, narrow = 2 * 3 + 1, 1 + shape.parameters * (shape.wide + shape.half), 0
    else:  # input and residual for each sum and the output; which are stored
        reads, stores, narrow = 2 * (3 if shape.centered else 2) + parameters, 2, shape.statistics
    yield from at_least(kernel, 4 * reads, "loads of 128 bits from shared memory", r"LDS\.128")
    yield from at_least(kernel, 4 * stores, "stores of 128 bits", VECTOR_STORE)
    yield from at_most(kernel, narrow, "narrower stores", NARROW_STORE)


@rule
def stashes_are_of_vectors(kernel: Kernel, _: str) -> Iterator[str]:
    """Of shared memory: what is stashed by vectors; what blocks exchange for their sums is narrower."""
    shape = Shape(kernel)
    if not shape.is_onchip or shape.access == 1 or shape.copies:
        return
    sums = (2 if shape.dtype == "double" and shape.inputs == 1 else 1) * shape.sums  # a second pass
    exchange = sums * (2 if shape.cluster else 1)
    yield from at_least(kernel, 4 * shape.inputs, "stores of 128 bits to shared memory", r"STS\.128")
    yield from at_most(kernel, exchange, "narrower stores to shared memory", r"STS(?!\.128)")
    yield from at_least(kernel, shape.inputs, "loads of 128 bits from shared memory", r"LDS\.128")
    yield from at_most(kernel, exchange, "narrower loads from shared memory", r"LDS(?!\.128)")


@rule
def loads_are_batched(kernel: Kernel, _: str) -> Iterator[str]:
    """All of a row, and all of a tile, is on the way before the first of it is waited for.

    Or three quarters of it: the compiler may well begin with the first when the last are not yet asked for.
    """
    shape = Shape(kernel)
    if not shape.aligned:
        return
    if shape.name == "row_norm_forward_kernel":
        planned = shape.vectors * (1 + shape.of_sum if shape.adds else 1)
    elif shape.name == "row_norm_backward_kernel":
        planned = shape.vectors * (1 + shape.of_sum)
    elif shape.is_long:
        planned = 1 if shape.name == "long_forward_kernel" else 2
    elif shape.access > 1 and not shape.copies:
        # A third input is there or not: it is asked for behind a branch.
        planned = 8 if shape.name == "sum_columns_kernel" else 4 * shape.inputs if shape.inputs < 3 else 4
    else:
        return
    if (found := kernel.loads_on_the_way()) < planned * 3 / 4:
        yield f"at most {found} vectors on the way at once, of {planned}"


def expected_shuffles(shape: Shape) -> int:
    """Steps of a butterfly, for each value, over the lanes of a warp, its warps, its cluster."""
    if shape.is_row:
        steps = int(math.log2(shape.lanes)) + (3 if shape.cluster else 0)
        return shape.row_sums * steps * (2 if shape.dtype == "double" else 1)  # 32 bits at a time
    if shape.is_ring:
        return shape.row_sums * int(math.log2(shape.threads))  # the lanes of a warp, and the warps of a block
    if shape.is_onchip or shape.name in ("sum_planes_kernel", "sum_rows_kernel"):
        values = shape.sums
        if shape.is_onchip and shape.inputs == 1 and shape.dtype == "double":
            values += 1  # a pass before, for the mean alone
        return values * 2 * (int(math.log2(shape.threads)) + (3 if shape.cluster else 0))
    if shape.name == "sum_columns_kernel":
        return shape.sums * 2 * 5 if shape.access > 1 else 0  # over the columns of a channel; a single one is all of it
    if re.match("group_norm_(finish|parameters)", shape.name):
        return (3 if "backward" in shape.name else 2) * 2 * 7
    if shape.name.startswith("finish_"):
        values = (3 if "backward" in shape.name else 2) if shape.centered else 1
        return values * 2 * 5
    return 0


@rule
def sums_go_through_shuffles(kernel: Kernel, architecture: str) -> Iterator[str]:
    shape = Shape(kernel)
    if shape.is_ring and shape.cluster and architecture == "sm_80":
        return  # never launched there: what clusters do is not compiled
    if expected := expected_shuffles(shape):
        yield from at_least(kernel, expected, "shuffles", SHUFFLE)
    else:
        yield from at_most(kernel, 0, "shuffles", "SHFL")


@rule
def barriers_where_blocks_share(kernel: Kernel, _: str) -> Iterator[str]:
    """The kernels of rows always have them: parameters in shared memory."""
    shape = Shape(kernel)
    always = "row_norm|ring|map_columns|sum_(planes|columns|rows|partials)|group_norm_(finish|parameters)"
    if shape.threads == 32:  # a warp, which needs none: the compiler may leave them in
        return
    if shape.is_onchip or re.match(always, shape.name):
        yield from at_least(kernel, 1, "barriers", BARRIER)
    else:
        yield from at_most(kernel, 0, "barriers", "BAR")


@rule
def clusters_meet_and_read_each_other(kernel: Kernel, architecture: str) -> Iterator[str]:
    shape = Shape(kernel)
    if shape.is_ring and shape.cluster:
        return  # the next rule's
    if shape.reads_peers and architecture != "sm_80":
        yield from at_least(kernel, 2, "barriers of the cluster", CLUSTER_BARRIER)  # a sum, and the end
        yield from at_least(kernel, shape.row_sums if shape.is_row else shape.sums, "loads from peers", GENERIC_LOAD)
    else:
        yield from at_most(kernel, 0, "barriers of the cluster", r"UCGABAR")


@rule
def clusters_of_rings_send_messages(kernel: Kernel, architecture: str) -> Iterator[str]:
    """They meet at the beginning and at the end, which has the whole GPU see what was written; between, messages do."""
    shape = Shape(kernel)
    if not shape.is_ring:
        return
    if not shape.cluster or architecture == "sm_80":
        yield from at_most(kernel, 0, "messages", "STAS")
        return
    yield from at_least(kernel, 1, "messages", r"STAS\.128")
    yield from at_least(kernel, 2, "barriers of the cluster", CLUSTER_BARRIER)
    yield from at_most(kernel, 2, "barriers of the cluster", CLUSTER_BARRIER)
    yield from at_most(kernel, 2, "barriers of the GPU's memory", r"MEMBAR\S*\.(GPU|SYS)")
    yield from at_most(kernel, 2, "caches emptied", r"CCTL\.IVALL")


# Never behind another kernel of their op, or launched when that is through: Launch::alone.
FIRST = r"row_norm_forward_kernel|add_rows_kernel|(batch|group)_norm_(forward|backward)_onchip_kernel|update_kernel"


@rule
def kernels_of_one_op_follow_each_other(kernel: Kernel, architecture: str) -> Iterator[str]:
    """Launched early, each waits for those before it: see follow() in platform.cuh."""
    if architecture != "sm_80" and not re.fullmatch(FIRST, kernel.name):
        yield from at_least(kernel, 1, "waits for the kernel before", "ACQBULK")
        yield from at_least(kernel, 1, "leaves for the kernel behind", "PREEXIT")


@every_architecture
@pytest.mark.parametrize("name", RULES)
def test_rule(name: str, architecture: str) -> None:
    known = [(pattern, reason) for rule_of, on, pattern, reason in KNOWN if (rule_of, on) == (name, architecture)]
    needed, problems = set(), []
    for key, kernel in kernels(architecture).items():
        for problem in RULES[name](kernel, architecture):
            if pattern := next((pattern for pattern, _ in known if re.match(pattern, key)), None):
                needed.add(pattern)
            else:
                problems.append(f"{key}: {problem}")
    assert not problems, f"{name}, on {architecture}:\n" + "\n".join(problems)
    assert needed == {pattern for pattern, _ in known}, "no longer broken: take it out of KNOWN"


# -------------------------------------------------------------------------------------------------- the table
def figures(architecture: str) -> dict[str, dict[str, int]]:
    """The most that a kernel of a family takes, by "family architecture"."""
    families: dict[str, list[Kernel]] = {}
    for kernel in kernels(architecture).values():
        families.setdefault(f"{kernel.name} {architecture}", []).append(kernel)
    return {
        family: {
            "registers": max(kernel.registers for kernel in members),
            "shared": max(kernel.shared for kernel in members),
        }
        for family, members in families.items()
    }


def write_table() -> None:
    """Sorted by family, then architecture; a line each, for a difference that can be read."""
    rows = {family: row for architecture in ARCHITECTURES for family, row in figures(architecture).items()}
    order = sorted(rows, key=lambda family: (family.split()[0], ARCHITECTURES.index(family.split()[1])))
    lines = ",\n".join(f"{json.dumps(family)}: {json.dumps(rows[family])}" for family in order)
    TABLE.write_text(f'{{\n"nvcc": "{nvcc_version()}",\n{lines}\n}}\n')


@every_architecture
def test_table(architecture: str) -> None:
    table = json.loads(TABLE.read_text())
    made_with = table.pop("nvcc")
    assert made_with == nvcc_version(), "figures of another nvcc: after a look at them, --update"
    expected = {family: row for family, row in table.items() if family.endswith(f" {architecture}")}
    found = figures(architecture)
    assert found.keys() == expected.keys()
    more = [
        f"{family}: {row[figure]} {figure}, {expected[family][figure]} known"
        for family, row in found.items()
        for figure in row
        if row[figure] > expected[family][figure]
    ]
    assert not more, "meant to be so? python tests/static/test_cubins.py --update\n" + "\n".join(more)


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python tests/static/test_cubins.py --update")
    write_table()
