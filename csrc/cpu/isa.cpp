#include "cpu/isa.h"

namespace normext::cpu {

bool supported(Isa isa) {
#if defined(__x86_64__)
  // The builtin asks the operating system too: it must save the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx512_bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  return isa == Isa::baseline;
}

static Isa best() {
  Isa best = Isa::baseline;
  for (const NamedIsa& known : kIsas)
    if (supported(known.isa)) best = known.isa;
  return best;
}

static Isa& choice() {
  static Isa isa = best();
  return isa;
}

Isa current_isa() { return choice(); }
void set_isa(Isa isa) { choice() = isa; }

int openmp_version() { return _OPENMP; }

}  // namespace normext::cpu
