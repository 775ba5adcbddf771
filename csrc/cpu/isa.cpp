#include "isa.h"

namespace normext::cpu {

bool supported(Isa isa) {
#if defined(__x86_64__)
  // The builtin asks the operating system too: it must save the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#endif
  return isa == Isa::baseline;
}

static Isa& choice() {
  static Isa isa = supported(Isa::avx512) ? Isa::avx512 : supported(Isa::avx2) ? Isa::avx2 : Isa::baseline;
  return isa;
}

Isa current_isa() { return choice(); }
void set_isa(Isa isa) { choice() = isa; }

int openmp_version() { return _OPENMP; }

}  // namespace normext::cpu
