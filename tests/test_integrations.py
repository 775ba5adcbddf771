"""What normext teaches other parts of torch waits until they are imported, and costs nobody anything before."""

import subprocess
import sys

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("torch is built without torch.distributed", allow_module_level=True)

PARTS = ("torch.onnx", "torch.distributed.tensor")
TAUGHT = """
from torch.onnx._internal.torchscript_exporter.registration import registry
from torch.distributed.tensor import DTensor
assert registry.is_registered_op("normext::layer_norm", 17)
assert torch.ops.normext.layer_norm_forward.default in DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs
"""


NORMEXT_FIRST = f"""
import sys, torch
others = {{name for name in {(*PARTS, "onnx")} if name not in sys.modules}}
import normext
assert not others & set(sys.modules)
import {", ".join(PARTS)}
"""
NORMEXT_LAST = f"import torch, {', '.join(PARTS)}, normext"


@pytest.mark.parametrize("program", [NORMEXT_FIRST, NORMEXT_LAST], ids=["normext first", "normext last"])
def test_order_of_imports(program: str) -> None:
    command = [sys.executable, "-W", "error::UserWarning:normext", "-c", program + TAUGHT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
