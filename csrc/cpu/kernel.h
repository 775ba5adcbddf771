// kernel.h -- what every kernel source includes: how it becomes reachable through isa.h.
//
// A kernel source specializes run for its ops in its own namespace, and ends with a line for each:
//   template void normext::cpu::run_on<normext::cpu::kIsa>(const Op&, int);
#pragma once
#include "cpu/isa.h"

namespace normext::cpu {

namespace NORMEXT_ISA {
template <class Op>
void run(const Op& op, int threads);
}

constexpr Isa kIsa = Isa::NORMEXT_ISA;

template <Isa isa, class Op>
void run_on(const Op& op, int threads) {
  NORMEXT_ISA::run(op, threads);
}

}  // namespace normext::cpu
