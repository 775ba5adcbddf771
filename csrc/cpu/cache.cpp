#include "cpu/cache.h"

#include <cstdio>
#include <string>

namespace normext::cpu {

// Linux says what the core at hand can reach; the C library's sysconf() adds up a whole package.
static int64_t read_cache(const char* level, int64_t otherwise) {
  const std::string path = std::string("/sys/devices/system/cpu/cpu0/cache/index") + level + "/size";
  std::FILE* const file = std::fopen(path.c_str(), "r");
  if (!file) return otherwise;
  long long kilobytes = 0;
  char unit = 0;
  const int read = std::fscanf(file, "%lld%c", &kilobytes, &unit);
  std::fclose(file);
  return read == 2 && kilobytes > 0 && unit == 'K' ? kilobytes * 1024 : otherwise;
}

// A larger last level is made of the slices of dozens of cores, and no faster than memory to a few of them: 58 and 57
// GB/s to two cores of a Xeon with 480 MB of it. What counts there are the second levels. (Streaming from 3 MB on
// instead of 8, with 2 MB each: BatchNorm 1.06 times in the last level and 1.2 beyond it, LayerNorm forward 0.7 to 0.9
// and 1.3.)
constexpr int64_t kLargest = 128 << 20;

static int64_t chosen = -1;

bool should_stream(int64_t bytes, int threads, bool twice) {
  static const int64_t second = read_cache("2", 1 << 20), last = read_cache("3", 32 << 20);
  if (chosen >= 0) return bytes > chosen / 2;
  return bytes > (last > kLargest ? (twice ? 3 : 8) * second * threads : last) / 2;
}
void set_last_level_cache(int64_t bytes) { chosen = bytes; }

static bool is_amd() {
#if defined(__x86_64__)
  static const bool amd = __builtin_cpu_is("amd");
  return amd;
#else
  return false;
#endif
}

// What pays depends on the processor's own prefetchers, and on its second-level cache. The Xeon reads whole rows of
// 2048 columns 1.1 to 2.0 times as fast as halves of them, Zen 5 0.85 to 1.0 times.
int64_t columns_at_once() { return is_amd() ? kMostColumns / 2 : kMostColumns; }

// bfloat16, planes of 8 x 8 and 10 x 10: the Xeon 1.1 to 1.5 times, 7 x 7 with AVX2 1.2 to 1.4. Zen 5 0.7 to 1.0.
bool should_take_columns() { return !is_amd(); }

// Zen 5 sees rows coming (0.84 to 1.05 times). The Xeon does not look beyond a page: from memory up to 1.45 times.
bool should_fetch_rows(int64_t rows_bytes) { return !is_amd() && rows_bytes <= 2 * kCached; }

}  // namespace normext::cpu
