// segments.h -- passes over contiguous runs that share their coefficients: a row, or the planes of one channel.
#pragma once
#include "sums.h"

namespace normext::cpu::NORMEXT_ISA {

// `count` runs of `length` elements, `stride` elements apart.
struct Segments {
  int64_t count, stride, length;
};

template <class T, int kInputs>
void load_inputs(const T* const (&in)[kInputs], int64_t offset, Vector<T> (&x)[kInputs]) {
  for (int i = 0; i < kInputs; ++i) x[i] = load(in[i] + offset);
}
template <class T, int kInputs>
void load_inputs(const T* const (&in)[kInputs], int64_t offset, Vector<T> (&x)[kInputs], int64_t count) {
  for (int i = 0; i < kInputs; ++i) x[i] = load(in[i] + offset, count);
}

// The totals of a short sum (sums.h) over all the segments.
template <class Sum, class T>
void reduce_segments(const T* const (&in)[Sum::kInputs], Segments segments,
                     const Scalar<T> (&coefficients)[Sum::kCoefficients], double (&totals)[Sum::kSums]) {
  Vector<T> k[Sum::kCoefficients], x[Sum::kInputs];
  for (int i = 0; i < Sum::kCoefficients; ++i) k[i] = broadcast(coefficients[i]);
  Doubles sums[Sum::kSums] = {};
  for (int64_t segment = 0; segment < segments.count; ++segment) {
    int64_t at = segment * segments.stride;
    const int64_t end = at + segments.length;
    for (; at + kShort * kLanes <= end; at += kShort * kLanes) {
      Sum part;
#pragma GCC unroll 8
      for (int i = 0; i < kShort; ++i) {
        load_inputs(in, at + i * kLanes, x);
        part.add(x, k);
      }
      part.flush(sums);
    }
    if (at == end) continue;
    Sum part;
    for (; at + kLanes <= end; at += kLanes) {
      load_inputs(in, at, x);
      part.add(x, k);
    }
    if (at < end) {
      load_inputs(in, at, x, end - at);
      part.add(x, k, end - at);
    }
    part.flush(sums);
  }
  for (int i = 0; i < Sum::kSums; ++i) totals[i] = sum(sums[i]);
}

// out = Map::apply(in, coefficients), element by element.
template <class Map, class T>
void map_segments(const T* const (&in)[Map::kInputs], T* out, Segments segments,
                  const Scalar<T> (&coefficients)[Map::kCoefficients]) {
  Vector<T> k[Map::kCoefficients], x[Map::kInputs];
  for (int i = 0; i < Map::kCoefficients; ++i) k[i] = broadcast(coefficients[i]);
  for (int64_t segment = 0; segment < segments.count; ++segment) {
    int64_t at = segment * segments.stride;
    const int64_t end = at + segments.length;
    for (; at + kLanes <= end; at += kLanes) {
      load_inputs(in, at, x);
      store(out + at, Map::apply(x, k));
    }
    if (at < end) {
      load_inputs(in, at, x, end - at);
      store(out + at, Map::apply(x, k), end - at);
    }
  }
}

// Requires at least one element.
template <class T>
Moments moments_of(const T* x, Segments segments) {
  const auto about = [&](Scalar<T> shift) {
    const T* const in[1] = {x};
    const Scalar<T> coefficients[1] = {shift};
    double totals[2];
    reduce_segments<MomentSums<T>>(in, segments, coefficients, totals);
    return moments_from_sums(segments.count * segments.length, shift, totals[0], totals[1]);
  };
  const Moments moments = about(load_one(x));
  if constexpr (kTwoPasses<T>) return about(moments.mean);
  return moments;
}

}  // namespace normext::cpu::NORMEXT_ISA
