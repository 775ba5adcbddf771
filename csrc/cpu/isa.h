// isa.h -- which instruction set runs the kernels.
//
// Every kernel source is compiled once per instruction set, named by the macro NORMEXT_ISA, into the namespace of that
// name. run(op, threads) picks the best set this machine has, or that of the environment variable NORMEXT_ISA.
#pragma once
#include <cstdint>

namespace normext::cpu {

// Ascending: a machine that has one has those before it. Baseline is SSE2 on x86-64, NEON on aarch64.
enum class Isa : uint8_t { baseline, avx2, avx512, avx512_bf16 };

struct NamedIsa {
  Isa isa;
  const char* name;
};
constexpr NamedIsa kIsas[] = {
    {Isa::baseline, "baseline"}, {Isa::avx2, "avx2"}, {Isa::avx512, "avx512"}, {Isa::avx512_bf16, "avx512_bf16"}};

bool supported(Isa isa);
Isa current_isa();
void set_isa(Isa isa);  // requires supported(isa); meant for tests
int openmp_version();   // the date of the OpenMP specification the kernels were compiled for, such as 201511

// One op on one instruction set. Instantiated by each kernel source (kernel.h), called through run().
template <Isa isa, class Op>
void run_on(const Op& op, int threads);

// Runs an op of csrc/ops on at most `threads` threads of the OpenMP runtime in the process.
template <class Op>
void run(const Op& op, int threads) {
  switch (current_isa()) {
#if defined(__x86_64__)
    case Isa::avx512_bf16:
      return run_on<Isa::avx512_bf16>(op, threads);
    case Isa::avx512:
      return run_on<Isa::avx512>(op, threads);
    case Isa::avx2:
      return run_on<Isa::avx2>(op, threads);
#endif
    default:
      return run_on<Isa::baseline>(op, threads);
  }
}

}  // namespace normext::cpu
