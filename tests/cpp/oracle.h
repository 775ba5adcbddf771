// oracle.h -- what the kernels must compute, as plain loops over one description of both norms.
//
// Element i of the input belongs to the statistics of group i / group_stride % groups and to the weight and bias of
// index i / affine_stride % affines. For row norms a group is a row and the index a column; for BatchNorm both are
// the channel. There may be several lines of weight and bias, one after another, each for its share of the elements.
#pragma once
#include <cmath>
#include <vector>

#include "buffer.h"
#include "ops/channel_norm.h"

namespace normext::test {

struct Axes {
  int64_t elements, groups, group_stride, affines, affine_stride;
  bool centered = true;  // else zero stands in the place of the mean
  int64_t lines = 1;     // the affines are those of all lines
  int64_t group(int64_t i) const { return i / group_stride % groups; }
  int64_t affine(int64_t i) const {
    return i / (elements / lines) * (affines / lines) + i / affine_stride % (affines / lines);
  }
};

// BatchNorm's.
inline Axes axes_of(const ChannelNormShape& shape) {
  const int64_t stride = shape.channels_last ? 1 : shape.plane;
  return {shape.batch * shape.channels * shape.plane, shape.channels, stride, shape.channels, stride};
}

// A right value, and the size of what was added up to reach it, which is what rounding errors are in proportion to.
struct Expected {
  std::vector<double> value, size;
  explicit Expected(int64_t n) : value(n), size(n) {}
  void set(int64_t i, double v, double s) { value[i] = v, size[i] = s; }
};

struct Statistics {
  Expected mean, var, rstd;
  explicit Statistics(int64_t groups) : mean(groups), var(groups), rstd(groups) {}

  void set_from_var(double eps) {
    for (size_t g = 0; g < var.value.size(); ++g) {
      const double r = 1 / std::sqrt(var.value[g] + eps);
      rstd.set(g, r, r);
    }
  }
};

inline double at(const Buffer* buffer, int64_t i, double otherwise) { return buffer ? (*buffer)[i] : otherwise; }

inline Statistics statistics(const Axes& axes, const Buffer& input, double eps) {
  Statistics out(axes.groups);
  const double count = static_cast<double>(axes.elements) / static_cast<double>(axes.groups);
  std::vector<long double> sum(axes.groups), squares(axes.groups);
  std::vector<double> magnitude(axes.groups);
  for (int64_t i = 0; i < axes.elements && axes.centered; ++i) {
    sum[axes.group(i)] += input[i];
    magnitude[axes.group(i)] += std::fabs(input[i]);
  }
  for (int64_t i = 0; i < axes.elements; ++i) {
    const long double d = input[i] - sum[axes.group(i)] / count;
    squares[axes.group(i)] += d * d;
  }
  for (int64_t g = 0; g < axes.groups; ++g) {
    const double var = squares[g] / count;
    out.mean.set(g, sum[g] / count, magnitude[g] / count);
    out.var.set(g, var, var);
  }
  out.set_from_var(eps);
  return out;
}

inline Expected forward(const Axes& axes, const Buffer& input, const Statistics& s, const Buffer* weight,
                        double weight_offset, const Buffer* bias) {
  Expected out(axes.elements);
  for (int64_t i = 0; i < axes.elements; ++i) {
    const double x = input[i], mean = s.mean.value[axes.group(i)], rstd = s.rstd.value[axes.group(i)];
    const double w = at(weight, axes.affine(i), 1) + weight_offset, b = at(bias, axes.affine(i), 0);
    // The mean may be small beside what it is a mean of.
    const double size = std::fabs(x) + s.mean.size[axes.group(i)];
    out.set(i, (x - mean) * rstd * w + b, size * rstd * std::fabs(w) + std::fabs(b));
  }
  return out;
}

struct Gradients {
  Expected input, weight, bias;
};

// `through_statistics`: the mean and deviation depend on the input, as they do but in BatchNorm's evaluation.
// grad_sum is added to the input's gradient.
inline Gradients backward(const Axes& axes, const Buffer& grad_output, const Buffer& input, const Buffer& mean,
                          const Buffer& rstd, const Buffer* weight, double weight_offset, bool through_statistics,
                          const Buffer* grad_sum = nullptr) {
  struct Element {
    double dy, g, xhat, size;  // size: of the numbers that xhat is a difference of
  };
  const auto element = [&](int64_t i) {
    const double dy = grad_output[i], x = input[i], m = mean[axes.group(i)], r = rstd[axes.group(i)];
    return Element{dy, dy * (at(weight, axes.affine(i), 1) + weight_offset), (x - m) * r,
                   (std::fabs(x) + std::fabs(m)) * r};
  };
  const double count = static_cast<double>(axes.elements) / static_cast<double>(axes.groups);
  std::vector<long double> g_mean(axes.groups), gx_mean(axes.groups), weight_sum(axes.affines), bias_sum(axes.affines);
  std::vector<double> g_size(axes.groups), gx_size(axes.groups);
  Gradients out{Expected(axes.elements), Expected(axes.affines), Expected(axes.affines)};
  for (int64_t i = 0; i < axes.elements; ++i) {
    const Element e = element(i);
    const int64_t group = axes.group(i), a = axes.affine(i);
    if (axes.centered) g_mean[group] += e.g / count;
    gx_mean[group] += e.g * e.xhat / count;
    g_size[group] += std::fabs(e.g) / count;
    gx_size[group] += std::fabs(e.g) * e.size / count;
    weight_sum[a] += e.dy * e.xhat;
    bias_sum[a] += e.dy;
    out.weight.size[a] += std::fabs(e.dy) * e.size;
    out.bias.size[a] += std::fabs(e.dy);
  }
  out.weight.value.assign(weight_sum.begin(), weight_sum.end());
  out.bias.value.assign(bias_sum.begin(), bias_sum.end());
  for (int64_t i = 0; i < axes.elements; ++i) {
    const Element e = element(i);
    const int64_t group = axes.group(i);
    const double r = rstd[group];
    if (through_statistics) {
      out.input.set(i, r * (e.g - g_mean[group] - e.xhat * gx_mean[group]),
                    r * (std::fabs(e.g) + g_size[group] + e.size * gx_size[group]));
    } else {
      out.input.set(i, r * e.g, r * std::fabs(e.g));
    }
    out.input.value[i] += at(grad_sum, i, 0);
    out.input.size[i] += std::fabs(at(grad_sum, i, 0));
  }
  return out;
}

}  // namespace normext::test
