// openmp_shim.cpp -- the little of OpenMP's runtime that the kernels call, over std::thread.
//
// ThreadSanitizer cannot see how libgomp starts and joins its threads, and so takes every region for a race. Here a
// region creates its threads and joins them, which the sanitizer follows. A call that stands not here fails to link;
// add it when a kernel needs it.
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {
thread_local int thread_number = 0, threads_in_region = 0;  // no region: 0 threads
}

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned /*flags*/) {
  if (threads == 0 || threads_in_region > 0) {
    std::fputs(threads ? "a parallel region inside another\n" : "a parallel region without num_threads\n", stderr);
    std::abort();
  }
  const auto member = [=](unsigned number) {
    thread_number = static_cast<int>(number);
    threads_in_region = static_cast<int>(threads);
    body(data);
    thread_number = threads_in_region = 0;
  };
  std::vector<std::thread> others;
  for (unsigned number = 1; number < threads; ++number) others.emplace_back(member, number);
  member(0);
  for (std::thread& other : others) other.join();
}

int omp_get_thread_num() { return thread_number; }
int omp_get_num_threads() { return threads_in_region ? threads_in_region : 1; }
}
