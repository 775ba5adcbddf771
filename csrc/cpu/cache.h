// cache.h -- how much the processor's caches hold, and what its prefetchers leave to be asked for.
#pragma once
#include <cstdint>

namespace normext::cpu {

int64_t last_level_cache();                // bytes, as far as it is faster than memory
void set_last_level_cache(int64_t bytes);  // meant for tests

// Whether an op that reads and writes so many bytes should write past the caches: its output would hardly be found
// there by whoever reads it, beside the input and all else. A store to a line that is not in the cache reads it first,
// which makes three transfers out of two.
inline bool should_stream(int64_t bytes) { return bytes > last_level_cache() / 2; }

// Bytes that surely stay in one core's second-level cache between two passes.
constexpr int64_t kCached = 262144;

// Whether to ask for what comes next while what is at hand goes through its last pass: a block of channels, plane by
// plane, of so many inputs that together have block_bytes, or rows that follow in memory.
bool should_fetch_block(int64_t inputs, int64_t block_bytes);
bool should_fetch_rows(int64_t rows_bytes);

}  // namespace normext::cpu
