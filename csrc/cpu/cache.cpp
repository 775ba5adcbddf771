#include "cache.h"

#include <fstream>

namespace normext::cpu {

// Linux says what the core at hand can reach; the C library's sysconf() adds up a whole package.
static int64_t read_last_level_cache() {
  int64_t kilobytes = 0;
  char unit = 0;
  std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> kilobytes >> unit;
  return kilobytes > 0 && unit == 'K' ? kilobytes * 1024 : 32 << 20;
}

static int64_t& choice() {
  static int64_t bytes = read_last_level_cache();
  return bytes;
}

int64_t last_level_cache() { return choice(); }
void set_last_level_cache(int64_t bytes) { choice() = bytes; }

}  // namespace normext::cpu
