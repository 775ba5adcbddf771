// channel_norm.h -- what the bindings of channel norms share: layouts, sizes of parameters, activations.
#pragma once
#include <string_view>

#include "common.h"
#include "ops/channel_norm.h"

namespace normext {

bool is_empty(const Tensor& input);

// The size of a parameter, which may be undefined, against the number of channels.
void check_size(const char* name, const Tensor& parameter, const c10::SymInt& channels);

// As check_parameters, but beside an empty input torch takes any dtypes.
at::ScalarType check_dtypes(const char* op, const Tensor& input, at::ArrayRef<Parameter> parameters);

// Contiguous or channels_last as input is; what torch suggests where it is neither.
at::MemoryFormat memory_format(const Tensor& input);

Tensor allocate_like(const Tensor& input);
ChannelNormShape shape_of(const Tensor& input, at::MemoryFormat format);

// An activation as operators are given it: relu, leaky_relu, which is the one with a slope, silu, or none.
using ActivationName = std::optional<std::string_view>;
Activation activation_of(const char* op, const ActivationName& name, double slope);

// activation(z), in torch's operators.
Tensor activated(const Tensor& z, const Activation& activation);

// grad_output * activation'(z) with z = normalized * weight + bias + residual, in operations that can be
// differentiated. What is not there is undefined, parameters broadcast against the rest; z is computed in float32 at
// least.
Tensor activation_gradient(const Activation& activation, const Tensor& grad_output, const Tensor& normalized,
                           const Tensor& weight, const Tensor& bias, const Tensor& residual);

// Throws unless a backward's grad_output is of input's shape, dtype and device.
void check_grad_output(const char* op, const Tensor& grad_output, const Tensor& input);

}  // namespace normext
