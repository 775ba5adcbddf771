"""What normext teaches other parts of torch about its operators, one file each.

Nothing here is imported before the part of torch it teaches: ``import normext`` stays as quick as it is, and who never
exports nor distributes a model never pays for it.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Each file by the module of torch that it waits for.
INTEGRATIONS = {
    "torch.onnx": "onnx_torchscript",
    "torch.onnx._internal.exporter._torchlib.ops": "onnx_dynamo",
    "torch.distributed.tensor": "dtensor",
    "torch.nn.parallel.distributed": "ddp",
}


def _load(awaited: str) -> None:
    name = INTEGRATIONS[awaited]
    try:
        importlib.import_module(f"{__name__}.{name}")
    except Exception as error:  # a torch whose insides differ must still import
        warnings.warn(f"normext cannot extend {awaited} of this torch: {error!r}", stacklevel=2)


class _Awaiting(MetaPathFinder):
    """Lets the other finders find a module, and loads its integration once it has run."""

    def __init__(self, awaited: set[str]) -> None:
        self.awaited = awaited

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.awaited:
            return None
        self.awaited.remove(fullname)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _load(fullname)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_awaited = {name for name in INTEGRATIONS if name not in sys.modules}
for _name in INTEGRATIONS.keys() - _awaited:
    _load(_name)
sys.meta_path.insert(0, _Awaiting(_awaited))
