// row_norm_forward.h -- row norms forward on the CPU: which rows a thread takes, with which line of parameters, and the
// sums with a residual that they are of.
#pragma once
#include "cpu/rows/normalized_rows.h"
#include "cpu/rows/residual.h"

namespace normext::cpu::NORMEXT_ISA {

// X is the type of what is normalized; the output is of that type, too, or of a half type beside float32.
template <class X, class P, class Statistics>
class ForwardWork {
  using S = Scalar<X>;
  using Kernel = NormalizedRows<X, P, Statistics>;

 public:
  ForwardWork(const RowNormForward& op, int threads)
      : op_(op),
        kernel_(op),
        row_bytes_(op.columns * static_cast<int64_t>(sizeof(X))),
        streamed_(should_stream((op.residual ? 4 : 2) * op.rows * row_bytes_, threads, false)),
        is_wide_(op.sum_dtype != op.dtype) {
    if (!has_lines(op)) kernel_.look_at_parameters(op.rows);
  }

  void run(int threads) const {
    if (share_rows(op_.rows, op_.columns, threads) || large_parameters(threads))
      return streamed_ ? by_columns<true>(threads) : by_columns<false>(threads);
    // Rows of a few lines take longer to compute than to write.
    if (row_bytes_ < 512 || !streamed_) return by_rows<false>(threads);
    should_stage(op_.output, row_bytes_) ? by_rows<false>(threads, true) : by_rows<true>(threads);
  }

 private:
  // Whether a row and the next one, the weight and the bias are more than a second-level cache holds, and a thread's
  // share of them is worth a barrier for every row.
  bool large_parameters(int threads) const {
    const int64_t bytes = 2 * op_.columns * static_cast<int64_t>(sizeof(X) + sizeof(P));
    return threads > 1 && bytes >= 8 * kCached && op_.columns >= 2 * kElementsPerThread * threads;
  }

  // Calls f(kernel, first, last) for rows [begin, end), line by line.
  template <class F>
  void for_lines(int64_t begin, int64_t end, const F& f) const {
    if constexpr (std::is_same_v<P, S>) {
      if (!has_lines(op_)) return f(kernel_, begin, end);
      const Widened<S> parameters(op_.param_dtype, op_.columns, 2);
      Kernel kernel = kernel_;
      for (int64_t at = begin, stop; at < end; at = stop) {
        const int64_t line = at / op_.lines.rows_per_line;
        stop = std::min(end, (line + 1) * op_.lines.rows_per_line);
        kernel.weight = parameters.load(0, op_.weight, line * op_.lines.weight_stride, op_.weight_offset);
        kernel.bias = parameters.load(1, op_.bias, line * op_.lines.bias_stride);
        kernel.look_at_parameters(stop - at);
        f(kernel, at, stop);
      }
    } else {
      f(kernel_, begin, end);
    }
  }

  // Threads take whole rows.
  template <bool kStream>
  void by_rows(int threads, bool staged = false) const {
    parallel_for(op_.rows, threads, [&](int64_t begin, int64_t end, int) {
      for_lines(begin, end, [&](const Kernel& kernel, int64_t first, int64_t last) {
        if (!op_.residual)
          kernel.template normalize_rows<kStream>(first, last, staged, InPlace<X>{kernel.input, row_bytes_});
        else if (is_wide_)
          kernel.template normalize_rows<false>(first, last, false, Sums<X>(op_, streamed_));
        else
          kernel.template normalize_rows<kStream>(first, last, staged, Sums<X>(op_, streamed_));
      });
      if (streamed_) end_of_stream();
    });
  }

  // Threads share each row by columns, and find theirs of the weight and the bias in cache from row to row.
  template <bool kStream>
  void by_columns(int threads) const {
    const int64_t columns = op_.columns, pieces = pieces_of(columns);
    const Scratch<X> outputs(is_wide_ ? op_.rows * columns : 0);
    if (op_.residual) {
      parallel_for(pieces, threads, [&, additions = Additions<X>(op_)](int64_t begin, int64_t end, int) {
        for (int64_t r = 0; r < op_.rows; ++r)
          additions.add(r, begin * kPiece, std::min(columns, end * kPiece), static_cast<X*>(op_.sum) + r * columns);
      });
    }
    for_lines(0, op_.rows, [&](const Kernel& line, int64_t first, int64_t last) {
      Kernel kernel = line;
      if (op_.residual) kernel.input = contiguous_rows(static_cast<const X*>(op_.sum), op_.rows, columns);
      if (is_wide_) kernel.output = outputs;
      by_columns<kStream>(kernel, first, last, threads);
    });
    if (!is_wide_) return;
    parallel_for(op_.rows * columns, threads, [&](int64_t begin, int64_t end, int) {
      convert_to<X>(op_.dtype, false, outputs, begin, end, op_.output, 0);
    });
  }

  // While a row is normalized, or a group of shorter ones, the next is summed.
  template <bool kStream>
  void by_columns(const Kernel& kernel, int64_t begin_row, int64_t end_row, int threads) const {
    const int64_t columns = op_.columns, pieces = pieces_of(columns);
    const int64_t group = std::clamp<int64_t>(kCached * threads / row_bytes_, 1, kRowsTogether);
    Scratch<Moments> partials(2 * group * pieces);  // of a group and the next one
    for (int64_t first = begin_row - group, turn = 0; first < end_row; first += group, turn = 1 - turn) {
      const Moments* const partial = partials + turn * group * pieces;
      Moments* const next_partial = partials + (1 - turn) * group * pieces;
      const int64_t next = first + group, count = first < begin_row ? 0 : std::min(group, end_row - first);
      parallel_for(pieces, threads, [&](int64_t begin, int64_t end, int) {
        double means[kRowsTogether], rstds[kRowsTogether];
        for (int64_t r = 0; r < count; ++r) {
          Moments moments;
          for (int64_t piece = 0; piece < pieces; ++piece) moments += partial[r * pieces + piece];
          means[r] = moments.mean;
          rstds[r] = reciprocal_std(moments.variance(), op_.eps);
          if (begin > 0) continue;
          if constexpr (Statistics::kCentered) kernel.mean[first + r] = static_cast<S>(means[r]);
          kernel.rstd[first + r] = static_cast<S>(rstds[r]);
        }
        for (int64_t piece = begin; piece < end; ++piece) {
          const int64_t from = piece * kPiece, to = from + piece_length(columns, piece);
          for (int64_t r = 0; r < group; ++r) {
            const auto write = [&](auto&& sums) NORMEXT_INLINE {
              const int64_t row = first + r;
              if (r < count)
                kernel.template normalize<kStream>(kernel.input[row], kernel.output + row * columns, means[r], rstds[r],
                                                   from, to, 0, sums);
            };
            if (next + r < end_row)
              next_partial[r * pieces + piece] =
                  kernel.template piece_moments<kStream ? kAskAhead<X> : 0>(kernel.input[next + r], piece, write);
            else
              write(NoSteps{});
          }
        }
        if (kStream) end_of_stream();
      });
    }
  }

  RowNormForward op_;
  Kernel kernel_;
  int64_t row_bytes_;
  bool streamed_, is_wide_;
};

}  // namespace normext::cpu::NORMEXT_ISA
