// checks.h -- how an op is run under all settings of a backend and compared with what it must compute, and a case's
// arrays.
#pragma once
#include <cstdio>
#include <optional>
#include <random>
#include <string>

#include "backend.h"
#include "oracle.h"

namespace normext::test {

constexpr double kEps = 1e-5;

struct DTypes {
  DType data, param;
  const char* name;
};
constexpr DTypes kDTypes[] = {
    {DType::float64, DType::float64, "float64"},    {DType::float32, DType::float32, "float32"},
    {DType::bfloat16, DType::bfloat16, "bfloat16"}, {DType::bfloat16, DType::float32, "bfloat16, float32 parameters"},
    {DType::float16, DType::float16, "float16"},    {DType::float16, DType::float32, "float16, float32 parameters"}};

// ------------------------------------------------------------------------------------------------ running and checking
inline std::string only;     // settings with this in their name; all of them if empty
inline std::string current;  // the case and the run, for reports: the sanitizers' know only the code
inline int64_t runs = 0, wrong = 0, cases = 0;
inline int64_t every = 1;  // one case of so many is tested

// Whether the next case is not to be tested: then it has been counted.
inline bool skips_next() {
  if (cases % every == 0) return false;
  ++cases;
  return true;
}

inline void print_current() { std::fprintf(stderr, "while running %s\n", current.c_str()); }

template <class Op>
bool is_long_row_norm(const Op& op) {
  if constexpr (std::is_same_v<Op, RowNormForward>)
    return op.dtype != DType::float64 && op.columns * size_of(op.dtype) > 8192;
  return false;
}

// Runs the op under every setting asked for; check() looks at the results of each.
template <class Op, class Forget, class Check>
void run_everywhere(const std::string& what, int64_t elements, const Op& op, const Forget& forget, const Check& check) {
  for (const Setting& setting : settings(elements)) {
    if (setting.name.find(only) == std::string::npos) continue;
    if (setting.for_long_rows && !is_long_row_norm(op)) continue;
    current = what + ", " + setting.name;
    setting.apply();
    forget();
    run(op);
    check();
    ++runs;
  }
}

constexpr double kHalfOverflow = 65520;  // from here on float16 rounds to infinity

// `compute` is the dtype that the kernel computes in: sums of it may be off by a few units of what was added up.
inline void compare(const char* name, const Buffer& got, const Expected& want, DType compute) {
  const double sums = compute == DType::float64 ? 64 : 8;  // float64 has nothing wider to merge partial sums in
  const double least = got.dtype() == DType::float16 ? 0x1p-25 : 0;  // subnormal numbers round absolutely
  for (int64_t i = 0; i < got.size(); ++i) {
    const double tolerance =
        1.01 * unit(got.dtype()) * std::fabs(want.value[i]) + sums * unit(compute) * want.size[i] + least;
    if (std::isnan(want.value[i]) || std::fabs(got[i] - want.value[i]) <= tolerance) continue;
    const bool overflows = got.dtype() == DType::float16 && std::fabs(want.value[i]) + tolerance >= kHalfOverflow;
    if (overflows && got[i] == std::copysign(INFINITY, want.value[i])) continue;
    if (++wrong <= 20) {
      std::fprintf(stderr, "%s: %s[%lld] is %.17g, not %.17g within %.3g\n", current.c_str(), name,
                   static_cast<long long>(i), got[i], want.value[i], tolerance);
    }
    return;
  }
}

inline void compare_exactly(const char* name, const Buffer& got, const Buffer& want) {
  for (int64_t i = 0; i < got.size(); ++i) {
    if (got[i] == want[i]) continue;
    if (++wrong <= 20) {
      std::fprintf(stderr, "%s: %s[%lld] is %.17g, not %.17g\n", current.c_str(), name, static_cast<long long>(i),
                   got[i], want[i]);
    }
    return;
  }
}

// ------------------------------------------------------------------------------------------------ arrays
// One case's arrays, which begin where their allocations do, or `shifted` by one element.
class Arrays {
 public:
  Arrays(int64_t number, bool shifted) : shifted_(shifted), random_(number) {}

  Buffer out(DType dtype, int64_t size) const { return Buffer(dtype, size, shifted_); }
  Buffer in(DType dtype, int64_t size, double low, double high) {
    Buffer buffer(dtype, size, shifted_);
    std::uniform_real_distribution<double> uniform(low, high);
    for (int64_t i = 0; i < size; ++i) buffer.set(i, uniform(random_));
    return buffer;
  }
  Buffer copy(DType dtype, const std::vector<double>& values) const {
    Buffer buffer(dtype, static_cast<int64_t>(values.size()), shifted_);
    for (int64_t i = 0; i < buffer.size(); ++i) buffer.set(i, values[i]);
    return buffer;
  }

 private:
  bool shifted_;
  std::mt19937_64 random_;
};

inline void* data(const std::optional<Buffer>& buffer) { return buffer ? buffer->data() : nullptr; }
inline const Buffer* pointer(const std::optional<Buffer>& buffer) { return buffer ? &*buffer : nullptr; }
inline void forget(std::optional<Buffer>& buffer) {
  if (buffer) buffer->forget();
}

}  // namespace normext::test
