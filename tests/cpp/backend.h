// backend.h -- whose kernels are tested: linked with cpu.cpp, the CPU's; with tests/emu/emulated.cpp, CUDA's.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "ops/channel_norm.h"
#include "ops/row_norm.h"

namespace normext::test {

// What the same op runs under: an instruction set and a number of threads, or a schedule and a device.
struct Setting {
  std::string name;
  std::function<void()> apply;
  bool for_long_rows = false;  // for the forward of row norms of more than 8 KB, and nothing else
};
const std::vector<Setting>& settings(int64_t elements);

template <class Op>
void run(const Op& op);

// Cases of at least so many elements get, for the sake of time, the dtypes and arguments marked so only.
extern const int64_t kLarge;

// Shapes on both sides of the kernels' thresholds. Never nothing: the bindings answer for empty tensors.
struct RowNormShape {
  int64_t rows, columns;
  bool every_norm = true;  // else LayerNorm alone, for the sake of time: what it is for is common to both
  int64_t size = 0;        // of the dtypes that the shape is for, in bytes; all of them if 0
};
std::vector<RowNormShape> row_norm_shapes();
// Of aligned rows of input + residual, beside the shapes of row_kinds.h.
std::vector<int64_t> columns_of_sums(DType data, DType sum);
std::vector<ChannelNormShape> batch_norm_shapes();

// For GroupNorm, and for BatchNorm with what may follow it.
struct GroupNormShape {
  ChannelNormShape shape;
  int64_t groups;
};
std::vector<GroupNormShape> group_norm_shapes();

// Whether BatchNorm's backward through an activation stores the gradient of a sum with a residual, rounded, and goes on
// from what it has stored (channel_norms.h).
extern const bool kRoundsGradientOfSum;

}  // namespace normext::test
