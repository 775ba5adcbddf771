// channel_norms.h -- GroupNorm, activations after it and after BatchNorm, a residual before these: against plain loops.
// BatchNorm by itself is in kernels.cpp.
#pragma once
#include <sstream>

#include "checks.h"

namespace normext::test {

struct ChannelKind {
  bool grouped;  // GroupNorm; else BatchNorm in training
  Activation activation;
  bool residual, weight, bias;
  const char* name;
};
constexpr Activation kNone = {}, kRelu = {Activation::Kind::leaky_relu, 0},
                     kLeaky = {Activation::Kind::leaky_relu, 0.2}, kSilu = {Activation::Kind::silu};
constexpr ChannelKind kChannelKinds[] = {{true, kNone, false, true, true, "group_norm"},
                                         {true, kSilu, false, true, true, "group_norm, silu"},
                                         {true, kNone, false, false, false, "group_norm without parameters"},
                                         {true, kLeaky, false, true, false, "group_norm without bias, leaky_relu"},
                                         {true, kRelu, false, false, true, "group_norm without weight, relu"},
                                         {false, kRelu, false, true, true, "batch_norm, relu"},
                                         {false, kRelu, true, true, true, "batch_norm, residual, relu"},
                                         {false, kSilu, false, true, false, "batch_norm without bias, silu"},
                                         {false, kNone, true, false, true, "batch_norm without weight, residual"},
                                         {false, kLeaky, true, true, true, "batch_norm, residual, leaky_relu"}};

inline double apply(const Activation& f, double z) {
  if (f.kind == Activation::Kind::silu) return z / (1 + std::exp(-z));
  return f.kind == Activation::Kind::leaky_relu && z < 0 ? f.slope * z : z;
}
inline double derivative(const Activation& f, double z) {
  const double s = 1 / (1 + std::exp(-z));
  if (f.kind == Activation::Kind::silu) return s * (1 + z * (1 - s));
  return f.kind == Activation::Kind::leaky_relu && z <= 0 ? f.slope : 1;
}

class ChannelCase {
 public:
  ChannelCase(const ChannelKind& kind, const ChannelNormShape& shape, int64_t groups, const DTypes& dtypes,
              bool shifted)
      : kind_(kind),
        shape_(shape),
        groups_(groups),
        t_(dtypes),
        stat_type_(statistics_dtype(dtypes.data)),
        elements_(shape.batch * shape.channels * shape.plane),
        arrays_(cases, shifted),
        x_(arrays_.in(t_.data, elements_, -1, 3)),
        dy_(arrays_.in(t_.data, elements_, -1, 2)) {
    ++cases;
    if (kind.weight) weight_ = arrays_.in(t_.param, shape.channels, -2, 2);
    if (kind.bias) bias_ = arrays_.in(t_.param, shape.channels, -2, 2);
    if (kind.residual) residual_ = arrays_.in(t_.data, elements_, -2, 2);
    const double count = static_cast<double>(elements_) / static_cast<double>(sets());
    std::vector<long double> sum(sets()), squares(sets());
    std::vector<double> magnitude(sets());
    for (int64_t i = 0; i < elements_; ++i) sum[set(i)] += x_[i], magnitude[set(i)] += std::fabs(x_[i]);
    for (int64_t i = 0; i < elements_; ++i) {
      const long double d = x_[i] - sum[set(i)] / count;
      squares[set(i)] += d * d;
    }
    for (int64_t s = 0; s < sets(); ++s) {
      const double v = squares[s] / count;
      stats_.mean.set(s, sum[s] / count, magnitude[s] / count);
      stats_.var.set(s, v, v);
    }
    stats_.set_from_var(kEps);
  }

  void test() {
    forward();
    backward();
  }

 private:
  int64_t sets() const { return kind_.grouped ? shape_.batch * groups_ : shape_.channels; }
  int64_t channel(int64_t i) const {
    return shape_.channels_last ? i % shape_.channels : i / shape_.plane % shape_.channels;
  }
  int64_t set(int64_t i) const {
    const int64_t sample = i / (shape_.channels * shape_.plane);
    return kind_.grouped ? sample * groups_ + channel(i) * groups_ / shape_.channels : channel(i);
  }
  double weight(int64_t i) const { return at(pointer(weight_), channel(i), 1); }
  double z(int64_t i, double mean, double rstd) const {
    return (x_[i] - mean) * rstd * weight(i) + at(pointer(bias_), channel(i), 0) + at(pointer(residual_), i, 0);
  }
  double z_size(int64_t i, const Statistics& stats) const {
    const double size = std::fabs(x_[i]) + stats.mean.size[set(i)];
    return size * stats.rstd.value[set(i)] * std::fabs(weight(i)) + std::fabs(at(pointer(bias_), channel(i), 0)) +
           std::fabs(at(pointer(residual_), i, 0));
  }
  std::string text(const char* pass) const {
    std::ostringstream what;
    what << kind_.name << " " << pass << ", " << shape_.batch << " x " << shape_.channels << " channels x "
         << shape_.plane << (shape_.channels_last ? " channels last" : "");
    if (kind_.grouped) what << " in " << groups_ << " groups";
    what << ", " << t_.name;
    return what.str();
  }

  void forward() {
    forward(stats_, nullptr, nullptr);
    if (kind_.grouped) return;
    const Buffer mean = arrays_.in(t_.param, sets(), -1, 1), var = arrays_.in(t_.param, sets(), 0.5, 2);
    Statistics running(sets());
    for (int64_t s = 0; s < sets(); ++s)
      running.mean.set(s, mean[s], std::fabs(mean[s])), running.var.set(s, var[s], 0);
    running.set_from_var(kEps);
    forward(running, &mean, &var);
  }

  void forward(const Statistics& stats, const Buffer* running_mean, const Buffer* running_var) {
    Expected want(elements_);
    for (int64_t i = 0; i < elements_; ++i) {
      const double value = z(i, stats.mean.value[set(i)], stats.rstd.value[set(i)]);
      want.set(i, apply(kind_.activation, value), 1.1 * z_size(i, stats));
    }
    Buffer output = arrays_.out(t_.data, elements_), mean = arrays_.out(stat_type_, sets()),
           rstd = arrays_.out(stat_type_, sets()), var = arrays_.out(stat_type_, sets());
    const auto check = [&](const auto& op) {
      run_everywhere(
          text(running_mean ? "evaluation" : "forward"), elements_, op,
          [&] { output.forget(), mean.forget(), rstd.forget(), var.forget(); },
          [&] {
            compare("mean", mean, stats.mean, stat_type_);
            compare("rstd", rstd, stats.rstd, stat_type_);
            if (!running_mean) compare("var", var, stats.var, stat_type_);
            compare("output", output, want, stat_type_);
          });
    };
    if (kind_.grouped) {
      check(GroupNormForward{.input = x_.data(),
                             .weight = data(weight_),
                             .bias = data(bias_),
                             .output = output.data(),
                             .mean = mean.data(),
                             .rstd = rstd.data(),
                             .var = var.data(),
                             .shape = shape_,
                             .groups = groups_,
                             .eps = kEps,
                             .activation = kind_.activation,
                             .dtype = t_.data,
                             .param_dtype = t_.param});
    } else {
      check(BatchNormForward{.input = x_.data(),
                             .weight = data(weight_),
                             .bias = data(bias_),
                             .running_mean = running_mean ? running_mean->data() : nullptr,
                             .running_var = running_var ? running_var->data() : nullptr,
                             .output = output.data(),
                             .mean = mean.data(),
                             .rstd = rstd.data(),
                             .var = running_var ? nullptr : var.data(),
                             .shape = shape_,
                             .eps = kEps,
                             .dtype = t_.data,
                             .param_dtype = t_.param,
                             .residual = data(residual_),
                             .activation = kind_.activation});
    }
  }

  void backward() {
    const Buffer mean = arrays_.copy(stat_type_, stats_.mean.value), rstd = arrays_.copy(stat_type_, stats_.rstd.value);
    const double count = static_cast<double>(elements_) / static_cast<double>(sets());
    Expected want_input(elements_), want_weight(shape_.channels), want_bias(shape_.channels), want_residual(elements_);
    std::vector<long double> h_mean(sets()), hx_mean(sets()), weight_sum(shape_.channels), bias_sum(shape_.channels);
    std::vector<double> g_size(elements_), h_size(sets()), hx_size(sets());
    const auto xhat = [&](int64_t i) { return (x_[i] - mean[set(i)]) * rstd[set(i)]; };
    const auto xhat_size = [&](int64_t i) { return (std::fabs(x_[i]) + std::fabs(mean[set(i)])) * rstd[set(i)]; };
    for (int64_t i = 0; i < elements_; ++i) {
      const double value = z(i, mean[set(i)], rstd[set(i)]);
      // Next to a kink the sign is a matter of rounding, and the gradient there is none.
      if (std::fabs(value) < 1e-4 * z_size(i, stats_)) dy_.set(i, 0);
      const double g = dy_[i] * derivative(kind_.activation, value);
      double size = std::fabs(dy_[i]) * (kind_.activation.kind == Activation::Kind::silu ? 1.1 + z_size(i, stats_) : 1);
      want_residual.set(i, g, size);
      if (kRoundsGradientOfSum && kind_.residual) size += unit(t_.data) / unit(stat_type_) * std::fabs(g);
      g_size[i] = size;
      const int64_t c = channel(i), s = set(i);
      weight_sum[c] += g * xhat(i), want_weight.size[c] += size * xhat_size(i);
      bias_sum[c] += g, want_bias.size[c] += size;
      h_mean[s] += g * weight(i) / count, hx_mean[s] += g * weight(i) * xhat(i) / count;
      h_size[s] += size * std::fabs(weight(i)) / count;
      hx_size[s] += size * std::fabs(weight(i)) * xhat_size(i) / count;
    }
    want_weight.value.assign(weight_sum.begin(), weight_sum.end());
    want_bias.value.assign(bias_sum.begin(), bias_sum.end());
    for (int64_t i = 0; i < elements_; ++i) {
      const int64_t s = set(i);
      const double h = want_residual.value[i] * weight(i), size = g_size[i] * std::fabs(weight(i));
      want_input.set(i, rstd[s] * (h - static_cast<double>(h_mean[s]) - xhat(i) * static_cast<double>(hx_mean[s])),
                     rstd[s] * (size + h_size[s] + xhat_size(i) * hx_size[s]));
    }
    // All of them, or the input's alone.
    for (const bool all : {true, false}) {
      if (!all && elements_ >= kLarge) continue;
      std::optional<Buffer> grad_weight, grad_bias, grad_residual;
      Buffer grad_input = arrays_.out(t_.data, elements_);
      if (all && kind_.weight) grad_weight = arrays_.out(t_.param, shape_.channels);
      if (all && kind_.bias) grad_bias = arrays_.out(t_.param, shape_.channels);
      const bool goes_through = kind_.activation.kind != Activation::Kind::none;
      if (all && kind_.residual && goes_through) grad_residual = arrays_.out(t_.data, elements_);
      const auto check = [&](const auto& op) {
        run_everywhere(
            text(all ? "backward" : "grad_input"), elements_, op,
            [&] { grad_input.forget(), forget(grad_weight), forget(grad_bias), forget(grad_residual); },
            [&] {
              compare("grad_input", grad_input, want_input, stat_type_);
              if (grad_weight) compare("grad_weight", *grad_weight, want_weight, stat_type_);
              if (grad_bias) compare("grad_bias", *grad_bias, want_bias, stat_type_);
              if (grad_residual) compare("grad_residual", *grad_residual, want_residual, stat_type_);
            });
      };
      if (kind_.grouped) {
        check(GroupNormBackward{.grad_output = dy_.data(),
                                .input = x_.data(),
                                .mean = mean.data(),
                                .rstd = rstd.data(),
                                .weight = data(weight_),
                                .bias = data(bias_),
                                .grad_input = grad_input.data(),
                                .grad_weight = data(grad_weight),
                                .grad_bias = data(grad_bias),
                                .shape = shape_,
                                .groups = groups_,
                                .activation = kind_.activation,
                                .dtype = t_.data,
                                .param_dtype = t_.param});
      } else {
        check(BatchNormBackward{.grad_output = dy_.data(),
                                .input = x_.data(),
                                .mean = mean.data(),
                                .rstd = rstd.data(),
                                .weight = data(weight_),
                                .grad_input = grad_input.data(),
                                .grad_weight = data(grad_weight),
                                .grad_bias = data(grad_bias),
                                .shape = shape_,
                                .training = true,
                                .dtype = t_.data,
                                .param_dtype = t_.param,
                                .bias = data(bias_),
                                .residual = data(residual_),
                                .grad_residual = data(grad_residual),
                                .activation = kind_.activation});
      }
    }
  }

  const ChannelKind& kind_;
  const ChannelNormShape shape_;
  const int64_t groups_;
  const DTypes t_;
  const DType stat_type_;
  const int64_t elements_;
  Arrays arrays_;
  const Buffer x_;
  Buffer dy_;
  std::optional<Buffer> weight_, bias_, residual_;
  Statistics stats_{sets()};
};

// Each dtype of every shape with a kind of GroupNorm, in turn; of shapes that are not large, with one of BatchNorm too.
// Half types come twice, with parameters of either dtype: once with arrays of each alignment.
inline void test_channel_norms() {
  constexpr size_t kGroupKinds = 5, kBatchKinds = std::size(kChannelKinds) - kGroupKinds;
  size_t turn = 0;
  for (const auto& [shape, groups] : group_norm_shapes()) {
    const bool batch_norms = shape.batch * shape.channels * shape.plane < kLarge;
    const auto test = [&](const DTypes& t, bool shifted) {
      if (!skips_next()) ChannelCase(kChannelKinds[turn % kGroupKinds], shape, groups, t, shifted).test();
      if (batch_norms && !skips_next())
        ChannelCase(kChannelKinds[kGroupKinds + turn % kBatchKinds], shape, groups, t, shifted).test();
      ++turn;
    };
    for (const DTypes& t : kDTypes) {
      if (!is_half(t.data) || t.param == t.data) test(t, false);
      if (!is_half(t.data) || t.param != t.data) test(t, true);
    }
  }
}

}  // namespace normext::test
