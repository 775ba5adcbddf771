// batch_parts.h -- BatchNorm of a batch in parts: a part's moments, what parts are merged into, what a part is mapped
// to where the moments and sums of the whole batch are given, whatever these are.
#pragma once
#include <array>
#include <sstream>

#include "checks.h"

namespace normext::test {

class PartCase {
 public:
  PartCase(const ChannelNormShape& shape, const DTypes& dtypes, bool shifted)
      : shape_(shape), t_(dtypes), axes_(axes_of(shape)), arrays_(cases, shifted), x_(in(dtypes.data, -1, 3)) {
    ++cases;
  }

  void test() {
    find_moments();
    forward();
    backward();
  }

 private:
  Buffer in(DType dtype, double low, double high) { return arrays_.in(dtype, axes_.elements, low, high); }
  int64_t channels() const { return shape_.channels; }
  double count() const { return static_cast<double>(axes_.elements / channels()); }
  std::string text(const char* pass) const {
    std::ostringstream what;
    what << pass << ", " << shape_.batch << " x " << channels() << " channels x " << shape_.plane
         << (shape_.channels_last ? " channels last, " : ", ") << t_.name;
    return what.str();
  }

  void find_moments() {
    const Statistics own = statistics(axes_, x_, kEps);
    Expected want(2 * channels());
    for (int64_t c = 0; c < channels(); ++c) {
      want.set(c, own.mean.value[c], own.mean.size[c]);
      want.set(channels() + c, own.var.value[c] * count(), own.var.size[c] * count());
    }
    Buffer found = arrays_.out(DType::float64, 2 * channels());
    BatchNormForward op{.input = x_.data(), .shape = shape_, .dtype = t_.data, .param_dtype = t_.data};
    op.found = static_cast<double*>(found.data());
    run_everywhere(
        text("a part's moments"), axes_.elements, op, [&] { found.forget(); },
        [&] { compare("moments", found, want, statistics_dtype(t_.data)); });
  }

  // Of a batch of three such parts.
  void forward() {
    for (int64_t c = 0; c < channels(); ++c) {
      const double mean = means_[c], var = vars_[c];
      moments_.set(c, mean), moments_.set(channels() + c, var * 3 * count());
      whole_.mean.set(c, mean, std::fabs(mean)), whole_.var.set(c, var, 0);
    }
    moments_.set(2 * channels(), 3 * count());
    whole_.set_from_var(kEps);
    const Expected want = test::forward(axes_, x_, whole_, &weight_, 0, &bias_);
    Buffer output = arrays_.out(t_.data, axes_.elements), mean = arrays_.out(stat_type(), channels()),
           rstd = arrays_.out(stat_type(), channels());
    BatchNormForward op{.input = x_.data(),
                        .weight = weight_.data(),
                        .bias = bias_.data(),
                        .output = output.data(),
                        .mean = mean.data(),
                        .rstd = rstd.data(),
                        .shape = shape_,
                        .eps = kEps,
                        .dtype = t_.data,
                        .param_dtype = t_.param};
    op.given = static_cast<const double*>(moments_.data());
    run_everywhere(
        text("a part's forward"), axes_.elements, op, [&] { output.forget(), mean.forget(), rstd.forget(); },
        [&] {
          compare("mean", mean, whole_.mean, stat_type());
          compare("rstd", rstd, whole_.rstd, stat_type());
          compare("output", output, want, stat_type());
        });
  }

  void backward() {
    const Buffer dy = in(t_.data, -1, 2), sums = arrays_.in(DType::float64, 2 * channels(), -2, 2);
    const Buffer mean = arrays_.copy(stat_type(), whole_.mean.value),
                 rstd = arrays_.copy(stat_type(), whole_.rstd.value);
    const double inverse = 1 / (3 * count());
    Expected want_sums(2 * channels()), want_input(axes_.elements);
    for (int64_t i = 0; i < axes_.elements; ++i) {
      const int64_t c = axes_.group(i);
      // Nobody rounds the mean to more than the statistics' dtype: what that is off by is in their tolerance.
      const double rstd = whole_.rstd.value[c], xhat = (x_[i] - whole_.mean.value[c]) * rstd;
      const double size = (std::fabs(x_[i]) + whole_.mean.size[c]) * rstd;
      want_sums.value[c] += dy[i], want_sums.size[c] += std::fabs(dy[i]);
      want_sums.value[channels() + c] += dy[i] * xhat, want_sums.size[channels() + c] += std::fabs(dy[i]) * size;
      const double scale = weight_[c] * rstd, g = sums[c] * inverse, gx = sums[channels() + c] * inverse;
      want_input.set(i, scale * (dy[i] - g - xhat * gx),
                     std::fabs(scale) * (std::fabs(dy[i]) + std::fabs(g) + size * std::fabs(gx)));
    }
    Buffer found = arrays_.out(DType::float64, 2 * channels()), grad_input = arrays_.out(t_.data, axes_.elements);
    BatchNormBackward op{.grad_output = dy.data(),
                         .input = x_.data(),
                         .mean = mean.data(),
                         .rstd = rstd.data(),
                         .shape = shape_,
                         .training = true,
                         .dtype = t_.data,
                         .param_dtype = t_.param};
    op.moments = static_cast<const double*>(moments_.data());
    op.found = static_cast<double*>(found.data());
    run_everywhere(
        text("a part's sums of gradients"), axes_.elements, op, [&] { found.forget(); },
        [&] { compare("sums", found, want_sums, stat_type()); });
    op.found = nullptr;
    op.given = static_cast<const double*>(sums.data());
    op.weight = weight_.data();
    op.grad_input = grad_input.data();
    run_everywhere(
        text("a part's backward"), axes_.elements, op, [&] { grad_input.forget(); },
        [&] { compare("grad_input", grad_input, want_input, stat_type()); });
  }

  DType stat_type() const { return statistics_dtype(t_.data); }

  const ChannelNormShape shape_;
  const DTypes t_;
  const Axes axes_;
  Arrays arrays_;
  const Buffer x_;
  const Buffer weight_ = arrays_.in(t_.param, channels(), -2, 2), bias_ = arrays_.in(t_.param, channels(), -2, 2);
  // Numbers that float32 has, so that mean and rstd are the moments' but for their rounding.
  const Buffer means_ = arrays_.in(DType::float32, channels(), -1, 1),
               vars_ = arrays_.in(DType::float32, channels(), 0.5, 2);
  Buffer moments_ = arrays_.out(DType::float64, 2 * channels() + 1);
  Statistics whole_{channels()};
};

// Parts of several sizes, one of them empty: merged they have the moments of all their elements.
inline void test_batch_norm_merge(int64_t channels) {
  if (skips_next()) return;
  Arrays arrays(cases++, false);
  constexpr std::array<int64_t, 4> kCounts = {3, 0, 1, 40};
  const int64_t stride = 2 * channels + 1, elements = 44;
  Buffer parts = arrays.out(DType::float64, std::size(kCounts) * stride), merged = arrays.out(DType::float64, stride);
  Expected want(stride);
  want.set(2 * channels, elements, 0);
  for (int64_t c = 0; c < channels; ++c) {
    // The mean is far from zero.
    const Buffer x = arrays.in(DType::float64, elements, 1e6, 1e6 + 1);
    const auto moments = [&](int64_t first, int64_t count, const auto& set) {
      long double sum = 0, squares = 0;
      for (int64_t i = first; i < first + count; ++i) sum += x[i];
      const long double mean = count ? sum / count : 0;
      for (int64_t i = first; i < first + count; ++i) squares += (x[i] - mean) * (x[i] - mean);
      set(static_cast<double>(mean), static_cast<double>(squares));
    };
    int64_t first = 0;
    for (size_t part = 0; part < std::size(kCounts); first += kCounts[part], ++part) {
      moments(first, kCounts[part], [&](double mean, double squares) {
        const int64_t at = static_cast<int64_t>(part) * stride;
        parts.set(at + c, mean), parts.set(at + channels + c, squares);
        parts.set(at + 2 * channels, static_cast<double>(kCounts[part]));
      });
    }
    moments(0, elements, [&](double mean, double squares) {
      want.set(c, mean, mean);
      want.set(channels + c, squares, 2 * elements * 1e6);  // of deviations known to the last bit of 1e6
    });
  }
  const BatchNormMerge op{static_cast<const double*>(parts.data()), static_cast<double*>(merged.data()), channels,
                          std::size(kCounts)};
  run_everywhere(
      "parts merged, " + std::to_string(channels) + " channels", channels, op, [&] { merged.forget(); },
      [&] { compare("merged", merged, want, DType::float64); });
}

inline void test_batch_parts() {
  for (const int64_t channels : {1, 5, 200}) test_batch_norm_merge(channels);
  for (const ChannelNormShape& shape : std::initializer_list<ChannelNormShape>{
           {3, 5, 7, false}, {2, 8, 64, false}, {2, 8, 64, true}, {33, 9, 1, false}, {5, 2, 1031, false}}) {
    for (const DTypes& t : kDTypes) {
      for (const bool shifted : {false, true})
        if (!skips_next()) PartCase(shape, t, shifted).test();
    }
  }
}

}  // namespace normext::test
