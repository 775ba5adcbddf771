// launches.cpp -- prints every kernel of rows that the launch tables (csrc/cuda/rows/row_launches.cuh) hold, and how
// many of its blocks are to fit on an SM: test_cubins.py compares that with what nvcc has made.
#include <cstdio>

#include "cuda/rows/row_norm_backward.cuh"
#include "cuda/rows/row_norm_forward.cuh"

namespace normext::cuda {
namespace {

template <class T>
constexpr const char* kName = sizeof(T) == 8   ? "double"
                              : sizeof(T) == 4 ? "float"
                                               : "half";
template <>
constexpr const char* kName<__nv_bfloat16> = "bf16";
template <>
constexpr const char* kName<Centered> = "Centered";
template <>
constexpr const char* kName<Uncentered> = "Uncentered";
template <>
constexpr const char* kName<Either> = "Either";

const char* text(bool value) { return value ? "true" : "false"; }

template <class T, class Statistics, class Source, bool kAligned>
void print_forward() {
  choose_launch<forward_launches<T, Source, kAligned>()>(0, []<RowLaunch kLaunch>() {
    constexpr int kLanes = kLaunch.lanes, kVecs = kLaunch.vecs;
    std::printf("row_norm_forward_kernel<%s, %s, %s<%s>, %d, %d, %s>: %d %d\n", kName<T>, kName<Statistics>,
                Source::kAdds ? "SumRows" : "InputRows", kName<typename Source::Element>, kLanes, kVecs, text(kAligned),
                kForwardBounds<T, Source, kLanes, kVecs, kAligned, false>,
                kForwardBounds<T, Source, kLanes, kVecs, kAligned, true>);
    return false;
  });
}

template <class T, class Statistics, class Source, bool kAligned>
void print_backward() {
  choose_launch<backward_launches<T, Source, kAligned>()>(0, []<RowLaunch kLaunch>() {
    constexpr int kLanes = kLaunch.lanes, kVecs = kLaunch.vecs, kBlocks = kBackwardBlocks<kLanes, kVecs>;
    std::printf("row_norm_backward_kernel<%s, %s, %s<%s>, %d, %d, %s, %s>: %d %d\n", kName<T>, kName<Statistics>,
                Source::kAdds ? "SumRows" : "InputRows", kName<typename Source::Element>, kLanes, kVecs,
                text(kLaunch.cluster > 1), text(kAligned), kBlocks, kBlocks);
    return false;
  });
}

template <class T>
void print_launches() {
  print_forward<T, Either, InputRows<T>, false>();
  print_backward<T, Either, SumRows<T>, false>();
  if constexpr (sizeof(T) < 8) {
    print_forward<T, Centered, InputRows<T>, true>();
    print_forward<T, Uncentered, InputRows<T>, true>();
    print_forward<T, Either, SumRows<T>, true>();
    print_backward<T, Centered, InputRows<T>, true>();
    print_backward<T, Uncentered, InputRows<T>, true>();
    print_backward<T, Either, SumRows<T>, true>();
  }
  if constexpr (sizeof(T) == 2) {
    print_forward<T, Either, SumRows<float>, true>();
    print_backward<T, Either, SumRows<float>, true>();
  }
}

}  // namespace
}  // namespace normext::cuda

int main() {
  using namespace normext::cuda;
  print_launches<double>();
  print_launches<float>();
  print_launches<__nv_bfloat16>();
  print_launches<__half>();
}
