// cache.h -- how much the processor's caches hold, and what its prefetchers leave to be asked for.
#pragma once
#include <cstdint>

namespace normext::cpu {

// Whether an op of so many threads that reads and writes so many bytes should write past the caches: its output would
// hardly be found there by whoever reads it, beside the input and all else. A store to a line that is not in the cache
// reads it first, which makes three transfers out of two. `twice`: whether it sums all of its inputs and then goes over
// them again, and had better find them in the cache than its output.
bool should_stream(int64_t bytes, int threads, bool twice);
void set_last_level_cache(int64_t bytes);  // meant for tests

// Bytes that surely stay in one core's second-level cache between two passes.
constexpr int64_t kCached = 262144;

// So many bytes of what is dear to compute are rather kept for the next pass than computed again: about as many as a
// second-level cache holds. (Up to 5 MB gain still, one thread alone: bfloat16 1.2 times, float32 nothing.)
constexpr int64_t kKept = 4 * kCached;

// Whether an op that reads and writes so many bytes should ask ahead for what it passes over (kAskAhead): they are
// more than the second-level caches of a few cores hold.
inline bool should_ask_ahead(int64_t bytes) { return bytes > 16 * kCached; }

// Columns of a row-major matrix that are walked down at once, with their coefficients and totals at hand: at most
// kMostColumns.
constexpr int64_t kMostColumns = 2048;
int64_t columns_at_once();

// Whether planes of up to seven vectors, and not of four only, are better walked as columns where samples are many.
bool should_take_columns();

// Whether to ask for the rows that follow in memory while those at hand go through their last pass.
bool should_fetch_rows(int64_t rows_bytes);

}  // namespace normext::cpu
