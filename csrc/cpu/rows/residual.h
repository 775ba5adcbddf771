// residual.h -- what surrounds a norm of sums: the addition before it, and between half types and float32 where sums
// are float32 beside half inputs.
#pragma once
#include "cpu/rows/parameters.h"

namespace normext::cpu::NORMEXT_ISA {

// sum = input + residual, of type X; the input may be of a half type beside float32.
template <class X>
class Additions {
 public:
  explicit Additions(const RowNormForward& op)
      : input_(op.input),
        dtype_(op.dtype),
        input_strides_(op.input_strides),
        residual_{static_cast<const X*>(op.residual), op.residual_strides} {}

  // Columns [begin, end) of a row, which begins at `to`.
  void add(int64_t row, int64_t begin, int64_t end, X* to) const {
    with_type<X>(dtype_, [&]<class D>(Type<D>) {
      const D* const in = StridedRows<D>{static_cast<const D*>(input_), input_strides_}[row];
      const X* const residual = residual_[row];
      map_vectors(
          std::false_type{}, to, begin, end,
          [=](int64_t at, int64_t n) NORMEXT_INLINE { return load(in + at, n) + load(residual + at, n); },
          [=](int64_t at) NORMEXT_INLINE {
            __builtin_prefetch(in + at + kAskAhead<D>, 0, 2);
            __builtin_prefetch(residual + at + kAskAhead<X>, 0, 2);
          });
    });
  }

 private:
  const void* input_;
  DType dtype_;
  RowStrides input_strides_;
  StridedRows<X> residual_;
};

// The rows of a norm of sums, for NormalizedRows: made in groups, each row by steps that go along with other work. Sums
// that are streamed are made in cache first, and outputs that are of a half type beside float32 sums normalized there.
template <class X>
class Sums {
 public:
  static constexpr bool kMakes = true;

  Sums(const RowNormForward& op, bool streamed)
      : additions_(op),
        op_(op),
        row_bytes_(op.columns * static_cast<int64_t>(sizeof(X))),
        streamed_(streamed),
        by_lines_(streamed && !should_stage(op.sum, row_bytes_)),
        is_wide_(op.sum_dtype != op.dtype),
        most_(std::clamp<int64_t>(rows_within(kFirstLevel), 1, kRowsTogether)),
        sums_(streamed ? 2 * most_ * op.columns : 0),
        outputs_(is_wide_ ? most_ * op.columns : 0) {}

  // Two groups are in cache at a time.
  int64_t rows_within(int64_t bytes) const { return bytes / 2 / row_bytes_; }

  // A group begins. Those that follow speak of the last one that did.
  void find(int64_t first, int64_t count, const X** x) {
    turn_ = 1 - turn_;
    first_ = first;
    count_ = count;
    group_ = streamed_ ? sums_ + turn_ * most_ * op_.columns : sum_of(first);
    for (int64_t r = 0; r < count; ++r) x[r] = group_ + r * op_.columns;
  }

  // Row r of the group in steps; none if there is no such row.
  class Row {
   public:
    Row(const Sums& sums, int64_t r) : sums_(sums), r_(r), at_(r < sums.count_ ? 0 : sums.op_.columns) {}
    void step() { add_until(std::min(at_ + kStep, sums_.op_.columns)); }
    void finish() { add_until(sums_.op_.columns); }

   private:
    NORMEXT_NOINLINE void add_until(int64_t stop) {
      if (at_ == stop) return;
      X *const made = sums_.group_ + r_ * sums_.op_.columns, *const to = sums_.sum_of(sums_.first_ + r_);
      sums_.additions_.add(sums_.first_ + r_, at_, stop, made);
      at_ = stop;
      if (!sums_.by_lines_) return;
      // What is in a line with elements to come waits for them.
      const int64_t past_line = reinterpret_cast<uintptr_t>(to + stop) % 64 / sizeof(X);
      const int64_t whole = stop == sums_.op_.columns ? stop : std::max(streamed_, stop - past_line);
      stream_run(made + streamed_, to + streamed_, whole - streamed_);
      streamed_ = whole;
    }

    const Sums& sums_;
    int64_t r_, at_, streamed_ = 0;
  };
  Row row(int64_t r) const { return Row(*this, r); }

  // The group, of which no row has been made.
  void make_all() const {
    for (int64_t r = 0; r < count_; ++r) row(r).finish();
    stream_group();
  }

  // Where row r is normalized to, for the output at `otherwise`.
  X* output_or(int64_t r, X* otherwise) const { return is_wide_ ? outputs_ + r * op_.columns : otherwise; }

  // All rows of the group have been made, while `count` rows from `first` on have been normalized.
  void finish(int64_t first, int64_t count) const {
    stream_group();
    if (is_wide_)
      convert_to<X>(op_.dtype, streamed_, outputs_, 0, count * op_.columns, op_.output, first * op_.columns);
  }

 private:
  X* sum_of(int64_t row) const { return static_cast<X*>(op_.sum) + row * op_.columns; }
  void stream_group() const {
    if (streamed_ && !by_lines_) stream_run<X>(group_, sum_of(first_), count_ * op_.columns);
  }

  Additions<X> additions_;
  const RowNormForward& op_;
  int64_t row_bytes_;
  bool streamed_, by_lines_, is_wide_;
  int64_t most_;
  Scratch<X> sums_, outputs_;
  int64_t turn_ = 0, first_ = 0, count_ = 0;
  X* group_ = nullptr;
};

}  // namespace normext::cpu::NORMEXT_ISA
