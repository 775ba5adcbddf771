// row_norm_backward.h -- row norms backward on the CPU: which rows a thread takes, and where their weight's and bias's
// gradients are added up.
#pragma once
#include "cpu/rows/residual.h"
#include "cpu/rows/row_gradients.h"

namespace normext::cpu::NORMEXT_ISA {

// X is the type of what was normalized; gradients are of that type, too, or of a half type beside float32.
template <class X, class P, class Statistics>
class BackwardWork {
  using S = Scalar<X>;
  using Kernel = RowGradients<X, P, Statistics>;
  using Rows = typename Kernel::Rows;
  using Row = typename Kernel::Row;

 public:
  BackwardWork(const RowNormBackward& op, const X* input_weight)
      : op_(op),
        kernel_(op, input_weight),
        stride_(op.grad_weight || op.grad_bias ? (op.columns + kLanes - 1) / kLanes * kLanes : 0),
        pieces_(pieces_of(op.columns)),
        is_wide_(op.sum_dtype != op.dtype) {}

  void run(int threads) const {
    const int64_t bytes = (op_.grad_sum ? 4 : 3) * op_.rows * op_.columns * static_cast<int64_t>(sizeof(X));
    should_stream(bytes, threads, false) ? run<true>(threads) : run<false>(threads);
  }

 private:
  template <bool kStream>
  void run(int threads) const {
    const bool large_totals = op_.columns * 2 * static_cast<int64_t>(sizeof(double)) > kCached;
    const bool shares = share_rows(op_.rows, op_.columns, threads) || large_totals;
    if (!has_lines(op_))
      return shares ? by_columns<kStream>(kernel_, 0, op_.rows, threads)
                    : by_rows<kStream>(kernel_, 0, op_.rows, threads);
    if constexpr (std::is_same_v<P, S>) {
      const int64_t lines = op_.rows / op_.lines.rows_per_line;
      // As share_rows, for lines of rows enough to share.
      const bool shares_lines = op_.lines.rows_per_line >= threads && lines < 4 * threads && lines % threads != 0;
      if (!shares && !shares_lines) return by_lines<kStream>(lines, threads);
      for_lines<false>(0, lines, [&](const Kernel& kernel, int64_t first, int64_t last) {
        shares ? by_columns<kStream>(kernel, first, last, threads) : by_rows<kStream>(kernel, first, last, threads);
      });
    }
  }

  // Calls f(kernel, first, last) for the rows of each line [begin, end). kStream: the lines' gradients are as much as
  // the rows', where each row has a line, and are streamed like these.
  template <bool kStream, class F>
  void for_lines(int64_t begin, int64_t end, const F& f) const {
    const Widened<S> numbers(op_.param_dtype, op_.columns, 3);
    Kernel kernel = kernel_;
    if (kernel.grad_weight) kernel.grad_weight = numbers.array(1);
    if (kernel.grad_bias) kernel.grad_bias = numbers.array(2);
    for (int64_t line = begin; line < end; ++line) {
      kernel.weight = numbers.load(0, op_.weight, line * op_.lines.weight_stride, op_.weight_offset);
      f(kernel, line * op_.lines.rows_per_line, (line + 1) * op_.lines.rows_per_line);
      numbers.store_line(1, op_.grad_weight, line * op_.columns, kStream);
      numbers.store_line(2, op_.grad_bias, line * op_.columns, kStream);
    }
  }

  // What beside a float32 input is of a half type: some rows' grad_output is widened before all else, and their
  // grad_input made of grad_residual, in cache.
  class Wide {
   public:
    Wide(const BackwardWork& work, int64_t most)
        : op_(work.op_),
          numbers_(work.is_wide_ ? 2 * most * op_.columns : 0),
          gradients_(work.is_wide_ ? numbers_ + most * op_.columns : nullptr) {}

    void widen(const Rows& rows, int64_t begin, int64_t end) const {
      with_type<X>(op_.dtype, [&]<class D>(Type<D>) {
        const StridedRows<D> grad_output{static_cast<const D*>(op_.grad_output), op_.grad_output_strides};
        for (int64_t r = 0; r < rows.count; ++r)
          convert<false>(grad_output[rows.first + r], begin, end, numbers_ + r * op_.columns);
      });
    }
    // Rows that read and write the numbers here.
    Rows around(Rows rows) const {
      rows.grad_output = numbers_;
      rows.grad_output_stride = op_.columns;
      rows.grad_input = op_.grad_input || op_.grad_residual ? gradients_ : nullptr;
      return rows;
    }
    void narrow(const Rows& rows, int64_t begin, int64_t end, bool streamed) const {
      for (int64_t r = 0; r < rows.count; ++r) {
        const X* const from = gradients_ + r * op_.columns;
        const int64_t at = (rows.first + r) * op_.columns;
        if (op_.grad_input) convert_to<X>(op_.dtype, streamed, from, begin, end, op_.grad_input, at);
        if (op_.grad_residual) convert(streamed, from, begin, end, static_cast<X*>(op_.grad_residual) + at);
      }
    }

   private:
    const RowNormBackward& op_;
    Scratch<X> numbers_;
    X* gradients_;
  };

  // Columns [begin, end) of some rows, elementwise.
  template <bool kStream>
  void gradients(const Kernel& kernel, const Rows& rows, const Row* row, const Wide& wide, int64_t begin, int64_t end,
                 double* weight_totals, double* bias_totals) const {
    if (!is_wide_) return kernel.template gradients<kStream>(rows, row, begin, end, weight_totals, bias_totals);
    kernel.template gradients<false>(rows, row, begin, end, weight_totals, bias_totals);
    wide.narrow(rows, begin, end, kStream);
  }

  // Rows that go through each step together: they, the next ones, which are asked for meanwhile, and the totals stay in
  // a second-level cache. (float32, 12288 columns, with 2 MB of it: 3 rows 1.3 times as fast as 4.)
  int64_t rows_together() const {
    const int64_t totals = 2 * stride_ * static_cast<int64_t>(sizeof(double));
    return kernel_.group_within((3 * kCached - totals) / 2);
  }

  // Rows [first, last), some at a time.
  template <bool kStream>
  void rows_in_groups(const Kernel& kernel, int64_t first, int64_t last, const Wide& wide, double* weight_totals,
                      double* bias_totals) const {
    const int64_t group = rows_together(), row_bytes = op_.columns * static_cast<int64_t>(sizeof(X));
    const bool fetch = row_bytes >= 2048 && should_fetch_rows(2 * group * row_bytes);  // shorter ones: 0.92 to 1.02
    for (int64_t at = first; at < last;) {
      Rows rows = kernel.rows_from(at, std::min(group, last - at), fetch ? group : 0);
      if (is_wide_) {
        wide.widen(rows, 0, op_.columns);
        rows = wide.around(rows);
      }
      Row row[kRowsTogether];
      for (int64_t r = 0; r < rows.count; ++r) row[r] = kernel.row_coefficients(at + r, kernel.row_sums(rows, r));
      gradients<kStream>(kernel, rows, row, wide, 0, op_.columns, weight_totals, bias_totals);
      at += rows.count;
    }
  }

  // Totals of one thread, or one line, if they are wanted: two arrays at `at`.
  struct Totals {
    double *weight, *bias;

    Totals(const Kernel& kernel, double* at, int64_t stride)
        : weight(kernel.grad_weight ? at : nullptr), bias(kernel.grad_bias ? at + stride : nullptr) {
      if (weight) std::fill_n(weight, stride, 0.0);
      if (bias) std::fill_n(bias, stride, 0.0);
    }
  };

  // Threads take whole rows, and each has totals of its own for the weight and the bias.
  template <bool kStream>
  void by_rows(const Kernel& kernel, int64_t first, int64_t last, int threads) const {
    const int parts = static_cast<int>(std::min<int64_t>(threads, last - first));
    Scratch<double> totals(parts * stride_ * 2);
    parallel_for(last - first, parts, [&](int64_t begin, int64_t end, int part) {
      const Totals own(kernel, totals + 2 * part * stride_, stride_);
      const Wide wide(*this, kRowsTogether);
      rows_in_groups<kStream>(kernel, first + begin, first + end, wide, own.weight, own.bias);
      if constexpr (kStream) end_of_stream();
    });
    if (!kernel.grad_weight && !kernel.grad_bias) return;
    parallel_for(op_.columns, threads_for(op_.columns * parts, threads), [&](int64_t begin, int64_t end, int) {
      for (int part = 1; part < parts; ++part)
        for (int which = 0; which < 2; ++which)
          if (which == 0 ? kernel.grad_weight : kernel.grad_bias)
            for (int64_t at = begin; at < end; ++at)
              totals[which * stride_ + at] += totals[(2 * part + which) * stride_ + at];
      kernel.store_totals(kernel.grad_weight, totals, begin, end);
      kernel.store_totals(kernel.grad_bias, totals + stride_, begin, end);
    });
  }

  // Threads take whole lines of parameters. Those of a few rows do without totals.
  template <bool kStream>
  void by_lines(int64_t lines, int threads) const {
    parallel_for(lines, threads, [&](int64_t begin, int64_t end, int) {
      const Wide wide(*this, kRowsTogether);
      const Scratch<double> totals(2 * stride_);
      for_lines<kStream>(begin, end, [&](const Kernel& kernel, int64_t first, int64_t last) {
        const int64_t most = std::min(rows_together(), last - first);
        if (kernel.rows_from(first, most).count == last - first)
          return rows_in_groups<kStream>(kernel, first, last, wide, nullptr, nullptr);
        const Totals own(kernel, totals, stride_);
        rows_in_groups<kStream>(kernel, first, last, wide, own.weight, own.bias);
        kernel.store_totals(kernel.grad_weight, own.weight, 0, op_.columns);
        kernel.store_totals(kernel.grad_bias, own.bias, 0, op_.columns);
      });
      if constexpr (kStream) end_of_stream();
    });
  }

  // Threads share each row by columns, and each owns the totals of its columns.
  template <bool kStream>
  void by_columns(const Kernel& kernel, int64_t begin_row, int64_t end_row, int threads) const {
    const int64_t columns = op_.columns, group = kernel.group_within(64 * kCached);
    const int64_t most = std::min(group, end_row - begin_row);
    const bool in_one_group = kernel.rows_from(begin_row, most).count == end_row - begin_row;  // they need no totals
    const Scratch<Gradients> partials(group * pieces_);
    const Scratch<double> totals(in_one_group ? 0 : 2 * stride_);
    double* const weight_totals = kernel.grad_weight && !in_one_group ? totals + 0 : nullptr;
    double* const bias_totals = kernel.grad_bias && !in_one_group ? totals + stride_ : nullptr;
    const Wide wide(*this, group);
    for (int64_t first = begin_row; first < end_row;) {
      Rows rows = kernel.rows_from(first, std::min(group, end_row - first));
      if (is_wide_) rows = wide.around(rows);
      const bool is_first = first == begin_row, is_last = first + rows.count == end_row;
      parallel_for(pieces_, threads, [&](int64_t begin, int64_t end, int) {
        if (is_wide_) wide.widen(rows, begin * kPiece, std::min(columns, end * kPiece));
        for (int64_t r = 0; r < rows.count; ++r)
          for (int64_t piece = begin; piece < end; ++piece)
            partials[r * pieces_ + piece] = kernel.piece_sums(first + r, rows.grad_output + r * rows.grad_output_stride,
                                                              rows.input + r * rows.input_stride, piece);
      });
      parallel_for(pieces_, threads, [&](int64_t begin_piece, int64_t end_piece, int) {
        const int64_t begin = begin_piece * kPiece, end = std::min(columns, end_piece * kPiece);
        if (is_first && weight_totals) std::fill(weight_totals + begin, weight_totals + end, 0.0);
        if (is_first && bias_totals) std::fill(bias_totals + begin, bias_totals + end, 0.0);
        Row row[kRowsTogether];
        for (int64_t r = 0; r < rows.count; ++r) {
          Gradients sums;
          for (int64_t i = 0; i < pieces_; ++i) sums += partials[r * pieces_ + i];
          row[r] = kernel.row_coefficients(first + r, sums);
        }
        gradients<kStream>(kernel, rows, row, wide, begin, end, weight_totals, bias_totals);
        if constexpr (kStream) end_of_stream();
        if (!is_last) return;
        if (weight_totals) kernel.store_totals(kernel.grad_weight, weight_totals, begin, end);
        if (bias_totals) kernel.store_totals(kernel.grad_bias, bias_totals, begin, end);
      });
      first += rows.count;
    }
  }

  RowNormBackward op_;
  Kernel kernel_;
  int64_t stride_, pieces_;  // stride_: of one array of totals, if there are any
  bool is_wide_;
};

}  // namespace normext::cpu::NORMEXT_ISA
