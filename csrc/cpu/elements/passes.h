// passes.h -- the two passes every norm is made of, over a contiguous run of elements: sums over its vectors, and a map
// from its vectors to those of the output.
#pragma once
#include <algorithm>
#include <iterator>
#include <type_traits>

#include "cpu/elements/dot_sums.h"

namespace normext::cpu::NORMEXT_ISA {

// Vectors of inputs at the same offset. If kAhead is not 0, it asks for those so many elements ahead.
template <class T, int kInputs, int64_t kAheadBy = 0>
struct Inputs {
  using Element = T;
  static constexpr int64_t kAhead = kAheadBy;
  const T* from[kInputs];  // copies: what is referred to must be fetched again after every store

  NORMEXT_INLINE explicit Inputs(const T* const (&in)[kInputs]) { std::copy_n(in, kInputs, from); }

  NORMEXT_INLINE void operator()(int64_t at, int64_t count, Vector<T> (&x)[kInputs]) const {
    if constexpr (kAhead > 0) prefetch(at + kAhead);
    for (int i = 0; i < kInputs; ++i) x[i] = load(from[i] + at, count);
  }
  // The same from `offset` on.
  template <int64_t kBy = 0>
  Inputs<T, kInputs, kBy> after(int64_t offset) const {
    Inputs<T, kInputs, kBy> rest(from);
    for (auto& pointer : rest.from) pointer += offset;
    return rest;
  }
  // Asks for what a later pass will read, while this one computes and writes. It need not be there.
  NORMEXT_INLINE void prefetch(int64_t at) const {
    for (int i = 0; i < kInputs; ++i) __builtin_prefetch(from[i] + at, 0, 2);
  }
};

// Sum (sums.h) over the elements [at, stop) of a run from `begin`: inputs(at, count, x) gives the vectors at `at`. If
// `stop` is not the end of the run, it is whole vectors away. It is added to copies of `none`, a sum of nothing. What
// the sum has made of the vectors is kept where inputs can.
template <class Sum, class Vector, class Inputs>
NORMEXT_INLINE inline Sum short_sum(int64_t begin, int64_t at, int64_t stop, const Inputs& inputs,
                                    const Vector (&k)[Sum::kCoefficients], const Sum& none = Sum()) {
  Vector x[Sum::kInputs];
  Sum chains[kChains];
  std::fill_n(chains, kChains, none);
  const auto add = [&](Sum& chain, int64_t from, int64_t count, Lanes lanes) NORMEXT_INLINE {
    inputs(from, count, x);
    chain.add(x, k, lanes);
    if constexpr (requires { inputs.keep(from, count, x); }) inputs.keep(from, count, x);
  };
  for (; at + kChains * kLanes <= stop; at += kChains * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i) add(chains[i], at + i * kLanes, kLanes, {});
  }
  for (; at + kLanes <= stop; at += kLanes) add(chains[0], at, kLanes, {});
  if (at < stop && stop - begin >= kLanes)  // a whole vector, less what has been added
    add(chains[0], stop - kLanes, kLanes, {kLanes - (stop - at), kLanes});
  else if (at < stop)
    add(chains[0], at, stop - at, {0, stop - at});
  return join(chains);
}

// The elements that are mapped or summed before other work gets its turn, if there is any: an output and an input from
// memory then come and go at once.
constexpr int64_t kStep = 512;

// Sum over the elements [begin, end) of a run, added to totals step by step. The cut into vectors and short sums
// depends on begin and end alone.
template <class Sum, class T, class Inputs>
class RunSums {
 public:
  NORMEXT_INLINE RunSums(const Inputs& inputs, int64_t begin, int64_t end,
                         const Scalar<T> (&coefficients)[Sum::kCoefficients], Doubles (&totals)[Sum::kSums],
                         const Sum& none = Sum())
      : none_(none), inputs_(inputs), begin_(begin), at_(begin), end_(end), totals_(totals) {
    for (int i = 0; i < Sum::kCoefficients; ++i) k_[i] = broadcast(coefficients[i]);
  }

  NORMEXT_INLINE void step() { add_until(std::min(end_, at_ + kStep)); }
  NORMEXT_INLINE void finish() { add_until(end_); }

 private:
  NORMEXT_INLINE void add_until(int64_t last) {
    while (at_ < last) {
      const int64_t stop = std::min(end_, at_ + kShort * kLanes);
      if constexpr (Sum::kDot)
        short_dot_sum<Sum, Inputs::kAhead>(inputs_.from, begin_, at_, stop).flush(totals_);
      else
        short_sum<Sum>(begin_, at_, stop, inputs_, k_, none_).flush(totals_);
      at_ = stop;
    }
  }

  const Sum none_;
  const Inputs inputs_;
  const int64_t begin_;
  int64_t at_;
  const int64_t end_;
  Vector<T> k_[Sum::kCoefficients];
  Doubles (&totals_)[Sum::kSums];
};

// Where there is no other work.
struct NoSteps {
  void step() {}
  void finish() {}
};

// Calls f(at, count) for the vectors of [begin, end), the last of which may be shorter than the others.
template <class F>
NORMEXT_INLINE inline void for_vectors_once(int64_t begin, int64_t end, const F& f) {
  int64_t at = begin;
  for (; at + kLanes <= end; at += kLanes) f(at, int64_t{kLanes});
  if (at < end) f(at, end - at);
}

// The same, but the last vector may overlap the one before it instead, so f must not add up anything.
template <class F>
NORMEXT_INLINE inline void for_vectors(int64_t begin, int64_t end, const F& f) {
  int64_t at = begin;
  for (; at + kLanes <= end; at += kLanes) f(at, int64_t{kLanes});
  if (at == end) return;
  if (end - begin >= kLanes)
    f(end - kLanes, int64_t{kLanes});
  else
    f(at, end - at);
}

// Elements before the next cache line.
template <class T>
int64_t before_line(const T* p) {
  return -reinterpret_cast<uintptr_t>(p) % 64 / sizeof(T);
}

// The vectors that fill a cache line.
template <class T>
constexpr int kLineVectors = std::max<int>(64 / (kLanes * sizeof(T)), 1);

// Where the line, or two, begins that holds an element behind the first line of a row.
template <class T>
int64_t line_start(const T* row, int64_t at) {
  return at - (at - before_line(row)) % (kLineVectors<T> * kLanes);
}

// What fills a cache line, to be streamed by one vector right after the other: a line that is written in part, when a
// load misses in between, may go to memory in part.
template <class T>
struct Line {
  alignas(64) T at[64 / sizeof(T)];

  NORMEXT_INLINE void stream_to(T* out) const { stream_bytes(at, out, sizeof at); }
};

// Writes f(at, count), which gives vectors, or NormalFloats, to the elements of a cache line, or two, from `at`; or
// past the caches if `streams`: a bool, or std::bool_constant to have the code of one of them alone.
template <class Streams, class T, class F>
NORMEXT_INLINE inline void map_line(Streams streams, T* out, int64_t at, const F& f) {
  if constexpr (kLineVectors<T> == 1) {
    const auto x = f(at, int64_t{kLanes});
    streams ? stream(out + at, x) : store(out + at, x);
  } else {
    Line<T> line;
#pragma GCC unroll 4
    for (int64_t i = 0; i < kLineVectors<T> * kLanes; i += 2 * kLanes) {
      const auto x = f(at + i, int64_t{kLanes}), y = f(at + i + kLanes, int64_t{kLanes});
      store(streams ? line.at + i : out + at + i, x, y);
    }
    if (streams) line.stream_to(out + at);
  }
}

// Where nothing is to be asked for ahead.
struct NotAhead {
  void operator()(int64_t) const {}
};

// Calls f(streams) with the constant, for a copy of the code each way; but with the bool for float64, which few train
// in, and for a map that is followed by an activation, which is code enough.
template <class Map, class T, class F>
void with_streaming(bool streams, const F& f) {
  if constexpr (sizeof(T) == 8 || requires(Map map) { requires !std::is_empty_v<decltype(map.activation)>; })
    f(streams);
  else
    streams ? f(std::true_type{}) : f(std::false_type{});
}

// The same as map_line for the elements [begin, end); ahead(at) comes before each line. Only whole cache lines are
// streamed, since streaming a part of a line and storing to the rest costs more than either.
template <class Streams, class T, class F, class Ahead = NotAhead>
NORMEXT_INLINE inline void map_vectors(Streams streams, T* out, int64_t begin, int64_t end, const F& f,
                                       const Ahead& ahead = {}) {
  constexpr int64_t kLine = kLineVectors<T> * kLanes;
  const int64_t lines = streams ? std::min(end, begin + before_line(out + begin)) : begin;
  int64_t lines_end = lines;
  for (; lines_end + kLine <= end; lines_end += kLine) {
    ahead(lines_end);
    map_line(streams, out, lines_end, f);
  }
  if (lines == begin && lines_end == end) return;
  // What comes before the lines and after them, in one copy of the code. The last vector may overlap what is before
  // it, unless that has been streamed.
#pragma GCC unroll 0
  for (int after = streams ? 0 : 1; after < 2; ++after) {
    const int64_t from = after ? lines_end : begin, to = after ? end : lines, first = streams ? from : begin;
    for (int64_t at = from; at < to; at += kLanes) {
      const int64_t start = std::max(first, std::min(at, to - kLanes)), count = std::min<int64_t>(kLanes, to - start);
      store(out + start, f(start, count), count);
    }
  }
}

// The same with other work in between, which comes to its end.
template <class Streams, class T, class F, class Ahead, class Steps>
NORMEXT_INLINE inline void map_vectors(Streams streams, T* out, int64_t begin, int64_t end, const F& f,
                                       const Ahead& ahead, Steps&& other) {
  if constexpr (std::is_same_v<std::decay_t<Steps>, NoSteps>) {
    map_vectors(streams, out, begin, end, f, ahead);
  } else {
    int64_t stop = begin + before_line(out + begin);  // steps are whole lines
    for (int64_t at = begin; at < end; at = stop) {
      stop = end - stop < kStep + kStep / 4 ? end : stop + kStep;
      other.step();
      map_vectors(streams, out, at, stop, f, ahead);
    }
    other.finish();
  }
}

// Whether rows share no cache line with each other.
inline bool whole_lines(const void* first, int64_t row_bytes) {
  return (reinterpret_cast<uintptr_t>(first) | static_cast<uintptr_t>(row_bytes)) % 64 == 0;
}

// A run of `count` elements from the cache past the caches; what shares a line with others is stored.
template <class T>
void stream_run(const T* from, T* out, int64_t count) {
  const auto bytes = reinterpret_cast<const char*>(from);
  const auto to = reinterpret_cast<char*>(out);
  const int64_t size = count * static_cast<int64_t>(sizeof(T));
  const int64_t head = std::min(size, before_line(to));
  const int64_t lines_end = head + (size - head) / 64 * 64;
  memcpy(to, bytes, head);
  stream_bytes(bytes + head, to + head, lines_end - head);
  memcpy(to + lines_end, bytes + lines_end, size - lines_end);
}

// Rows so short that the cache lines they share with their neighbours are many are mapped into a stage first, which
// stays in the first-level cache, and streamed from there together.
constexpr int64_t kStagedRow = 2048;  // bytes
inline bool should_stage(const void* first, int64_t row_bytes) {
  return row_bytes < kStagedRow && !whole_lines(first, row_bytes);
}

template <class T>
struct Stage {
  static constexpr int64_t kSize = 8 * kStagedRow / sizeof(T);
  alignas(64) T at[kSize];

  void stream_to(T* out, int64_t count) const { stream_run(at, out, count); }
};

}  // namespace normext::cpu::NORMEXT_ISA
