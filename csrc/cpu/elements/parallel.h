// parallel.h -- work over threads.
#pragma once
#include <omp.h>

#include <cstdint>

namespace normext::cpu::NORMEXT_ISA {

// Waking a thread costs some microseconds: each should get at least this many elements.
constexpr int64_t kElementsPerThread = 16384;

inline int threads_for(int64_t elements, int threads) {
  const int64_t useful = elements / kElementsPerThread + 1;
  return useful < threads ? static_cast<int>(useful) : threads;
}

// Cuts [0, count) into at most `parts` even parts and calls f(begin, end, part) for each, in parallel. The cut depends
// on nothing but count and parts, so results do not depend on how many threads the runtime grants.
template <class F>
void parallel_for(int64_t count, int parts, const F& f) {
  if (count < parts) parts = static_cast<int>(count);
  if (parts <= 1) {
    if (count > 0) f(int64_t{0}, count, 0);
    return;
  }
#pragma omp parallel num_threads(parts)
  for (int part = omp_get_thread_num(); part < parts; part += omp_get_num_threads())
    f(count * part / parts, count * (part + 1) / parts, part);
}

}  // namespace normext::cpu::NORMEXT_ISA
