// emulated_backend.cpp -- takes the place of the CPU kernels in the extension module that the test suite loads as one
// more backend: CPU tensors then are computed by the CUDA kernels, emulated. Linked instead of csrc/cpu, so that the
// module itself knows nothing of it.
#include "cpu/isa.h"
#include "ops/channel_norm.h"
#include "ops/row_norm.h"
#include "run_emulated.h"

namespace normext::cpu {

bool supported(Isa isa) { return isa == Isa::baseline; }
Isa current_isa() { return Isa::baseline; }
void set_isa(Isa) {}
int openmp_version() { return 0; }

template <Isa isa, class Op>
void run_on(const Op& op, int) {
  test::run_emulated(op);
}

// The bindings name every instruction set, though only one of them is supported.
#define EVERY_ISA(Op)                                  \
  template void run_on<Isa::baseline>(const Op&, int); \
  template void run_on<Isa::avx2>(const Op&, int);     \
  template void run_on<Isa::avx512>(const Op&, int);   \
  template void run_on<Isa::avx512_bf16>(const Op&, int);
EVERY_ISA(RowNormForward)
EVERY_ISA(RowNormBackward)
EVERY_ISA(BatchNormForward)
EVERY_ISA(BatchNormBackward)
EVERY_ISA(BatchNormMerge)
EVERY_ISA(BatchNormUpdate)
EVERY_ISA(GroupNormForward)
EVERY_ISA(GroupNormBackward)

}  // namespace normext::cpu
