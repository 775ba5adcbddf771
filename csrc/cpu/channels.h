// channels.h -- how [batch, channels, plane] data, in either layout, is cut into work: blocks of channels, and slices
// of a block where there are fewer blocks than threads.
//
// Planes of some length are walked one channel at a time (segments.h). Everything else is a matrix walked by columns
// (columns.h): channels_last data; planes too short for a vector loop, [batch, channels * plane] with a channel every
// `plane` columns; and where that matrix is narrow, as with three channels, several of its rows side by side.
#pragma once
#include <algorithm>

#include "columns.h"
#include "ops/batch_norm.h"
#include "parallel.h"

namespace normext::cpu::NORMEXT_ISA {

constexpr int64_t kShortPlane = 512;    // elements; shorter planes are walked as columns
constexpr int64_t kNarrow = 64;         // columns; narrower matrices get several rows side by side
constexpr int64_t kPlanePiece = 16384;  // elements; longer planes can be cut between threads

class Channels {
 public:
  // slice_elements, if not 0: no slice of a block should be larger than that.
  Channels(const BatchNormShape& shape, int threads, int64_t slice_elements = 0)
      : channels_(shape.channels),
        total_(shape.batch * shape.channels * shape.plane),
        plane_(shape.channels_last ? 1 : shape.plane),
        by_planes_(plane_ >= kShortPlane),
        threads_(threads_for(total_, threads)) {
    if (by_planes_) {
      pieces_ = (plane_ + kPlanePiece - 1) / kPlanePiece;
      units_ = shape.batch * pieces_;
      block_channels_ = 1;
    } else {
      const int64_t width = channels_ * plane_;
      width_ = width < kNarrow ? width * kLanes : width;
      units_ = (total_ + width_ - 1) / width_;
      block_channels_ = std::min(channels_, kBlockColumns / plane_);
    }
    blocks_ = (channels_ + block_channels_ - 1) / block_channels_;
    const bool balanced = blocks_ >= 4 * threads_ || blocks_ % threads_ == 0;
    const int64_t wanted = balanced ? 1 : threads_;
    const int64_t needed = slice_elements ? total_ / blocks_ / slice_elements + 1 : 1;
    slices_ = std::min(units_, std::max(wanted, needed));
  }

  int64_t slices() const { return slices_; }
  // Elements of a channel in one slice.
  int64_t count(int64_t slice) const {
    if (!by_planes_) return (std::min(total_, unit_begin(slice + 1) * width_) - unit_begin(slice) * width_) / channels_;
    return plane_offset(unit_begin(slice + 1)) - plane_offset(unit_begin(slice));
  }
  int64_t first_element(int64_t channel) const { return channel * plane_; }

  // reduce(block, slice) for all, then finish(channel) for all, then map(block, slice) for all. A block that is not
  // sliced goes through all three while its data is in cache.
  template <class Reduce, class Finish, class Map>
  void run(const Reduce& reduce, const Finish& finish, const Map& map) const {
    if (slices_ == 1) {
      parallel_for(blocks_, threads_, [&](int64_t begin, int64_t end, int) {
        for (int64_t block = begin; block < end; ++block) {
          reduce(block, 0);
          for (int64_t channel = channel_begin(block); channel < channel_begin(block + 1); ++channel) finish(channel);
          map(block, 0);
        }
      });
      return;
    }
    const auto for_slices = [&](const auto& f) {
      parallel_for(blocks_ * slices_, threads_, [&](int64_t begin, int64_t end, int) {
        for (int64_t item = begin; item < end; ++item) f(item / slices_, item % slices_);
      });
    };
    for_slices(reduce);
    parallel_for(channels_, threads_for(channels_, threads_), [&](int64_t begin, int64_t end, int) {
      for (int64_t channel = begin; channel < end; ++channel) finish(channel);
    });
    for_slices(map);
  }

  // Sums over one slice of a block: coefficients(channel, k) fills a channel's coefficients, emit(channel, totals)
  // takes its totals.
  template <class Sum, class T, class Coefficients, class Emit>
  void reduce(int64_t block, int64_t slice, const T* const (&in)[Sum::kInputs], const Coefficients& coefficients,
              const Emit& emit) const {
    if (by_planes_) {
      Scalar<T> k[Sum::kCoefficients];
      coefficients(block, k);
      double totals[Sum::kSums] = {};
      for_segments(block, slice, [&](int64_t offset, Segments segments) {
        const T* at[Sum::kInputs];
        for (int i = 0; i < Sum::kInputs; ++i) at[i] = in[i] + offset;
        double part[Sum::kSums];
        reduce_segments<Sum, T>(at, segments, k, part);
        for (int i = 0; i < Sum::kSums; ++i) totals[i] += part[i];
      });
      return emit(block, totals);
    }
    ColumnTable<Scalar<T>> k[Sum::kCoefficients];
    expand(block, k, coefficients);
    ColumnTable<double> sums[Sum::kSums] = {};
    reduce_columns<Sum, T>(in, columns(block, slice), k, sums);
    for (int64_t channel = channel_begin(block); channel < channel_begin(block + 1); ++channel) {
      double totals[Sum::kSums] = {};
      for_columns_of(block, channel, [&](int64_t column) {
        for (int i = 0; i < Sum::kSums; ++i) totals[i] += sums[i].at[column];
      });
      emit(channel, totals);
    }
  }

  template <class Map, class T, class Coefficients>
  void map(int64_t block, int64_t slice, const T* const (&in)[Map::kInputs], T* out,
           const Coefficients& coefficients) const {
    if (by_planes_) {
      Scalar<T> k[Map::kCoefficients];
      coefficients(block, k);
      for_segments(block, slice, [&](int64_t offset, Segments segments) {
        const T* at[Map::kInputs];
        for (int i = 0; i < Map::kInputs; ++i) at[i] = in[i] + offset;
        map_segments<Map, T>(at, out + offset, segments, k);
      });
      return;
    }
    ColumnTable<Scalar<T>> k[Map::kCoefficients];
    expand(block, k, coefficients);
    map_columns<Map, T>(in, out, columns(block, slice), k);
  }

 private:
  int64_t channel_begin(int64_t block) const { return std::min(channels_, block * block_channels_); }
  int64_t unit_begin(int64_t slice) const { return units_ * slice / slices_; }

  // A unit is a plane, or one of the pieces of a long plane: this is where it begins, counted along one channel.
  int64_t plane_offset(int64_t unit) const { return unit / pieces_ * plane_ + plane_ * (unit % pieces_) / pieces_; }

  template <class F>
  void for_segments(int64_t channel, int64_t slice, const F& f) const {
    const int64_t begin = unit_begin(slice), end = unit_begin(slice + 1), stride = channels_ * plane_;
    if (pieces_ == 1) return f(begin * stride + channel * plane_, Segments{end - begin, stride, plane_});
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t offset = plane_offset(unit), sample = unit / pieces_;
      f(sample * stride + channel * plane_ + (offset - sample * plane_),
        Segments{1, 0, plane_offset(unit + 1) - offset});
    }
  }

  ColumnBlock columns(int64_t block, int64_t slice) const {
    const int64_t begin = channel_begin(block) * plane_;
    const int64_t end = blocks_ == 1 ? width_ : channel_begin(block + 1) * plane_;
    return {width_, total_, unit_begin(slice), unit_begin(slice + 1), begin, end};
  }

  // f(column) for each column of a channel, counted from the block's first.
  template <class F>
  void for_columns_of(int64_t block, int64_t channel, const F& f) const {
    const int64_t first = (channel - channel_begin(block)) * plane_, width = channels_ * plane_;
    const int64_t end = blocks_ == 1 ? width_ : first + 1;
    for (int64_t run = first; run < end; run += width)
      for (int64_t column = run; column < run + plane_; ++column) f(column);
  }

  template <class Number, int kTables, class Coefficients>
  void expand(int64_t block, ColumnTable<Number> (&tables)[kTables], const Coefficients& coefficients) const {
    for (int64_t channel = channel_begin(block); channel < channel_begin(block + 1); ++channel) {
      Number k[kTables];
      coefficients(channel, k);
      for_columns_of(block, channel, [&](int64_t column) {
        for (int i = 0; i < kTables; ++i) tables[i].at[column] = k[i];
      });
    }
  }

  int64_t channels_, total_;
  int64_t plane_;  // columns, or contiguous elements, that belong to one channel
  bool by_planes_;
  int threads_;
  int64_t units_;  // what slices are made of: rows of the matrix, planes or pieces of planes
  int64_t pieces_ = 1, width_ = 0;
  int64_t block_channels_, blocks_, slices_;
};

}  // namespace normext::cpu::NORMEXT_ISA
