"""``python -m benchmarks``: how fast normext is, beside every other implementation installed here.

__main__.py     the arguments
run.py          the run: builds each case's contenders, times them, reports
cases.py        what is measured: shapes, dtypes, layouts, directions, and the bytes each must move
peers.py        who is measured: normext, torch eager, torch.compile, and what else is installed
timing.py       how, on the CPU; timing_cuda.py: how, on a GPU
overhead.py     the cost of a call, on tensors too small to count
results.py      what was found: quartiles, ratios, geometric means
machine.py      where: processor, versions, commit
record.py       the file of a run: a line a case
report.py       the tables; python -m benchmarks.report draws those, and the plots, of a run that was written
plots.py        the plots

``python -m benchmarks.training``: what a step of training takes with normext, and without; models.py has the networks.
``python -m benchmarks.synchronized``: what SyncBatchNorm's collectives cost, between processes of this machine.
``python -m benchmarks.losses``: a ResNet-50 with normext's norms and one with torch's learn alike, on a GPU.
"""
