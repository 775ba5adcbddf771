"""``DistributedDataParallel`` refuses every ``torch.nn.SyncBatchNorm`` on the CPU, which torch has no kernels for.

normext's derives from it, and has: a model whose only ones are normext's is taken.
"""

import torch
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from normext.modules import SyncBatchNorm

_refuse = DistributedDataParallel._passing_sync_batchnorm_handle


def _refuse_torchs(self: DistributedDataParallel, module: Module) -> None:
    synchronized = [layer for layer in module.modules() if isinstance(layer, torch.nn.SyncBatchNorm)]
    if not all(isinstance(layer, SyncBatchNorm) for layer in synchronized):
        _refuse(self, module)


DistributedDataParallel._passing_sync_batchnorm_handle = _refuse_torchs  # type: ignore[method-assign]
