// library.cpp -- the schemas of torch.ops.normext.*
#include <torch/library.h>

TORCH_LIBRARY(normext, m) {
  m.def(
      "layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, "
      "*, float weight_offset=0.0) -> Tensor");
  m.def(
      "layer_norm_forward(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps, "
      "float weight_offset=0.0) -> (Tensor output, Tensor mean, Tensor rstd)");
  m.def(
      "layer_norm_backward(Tensor grad_output, Tensor input, SymInt[] normalized_shape, Tensor mean, Tensor rstd, "
      "Tensor? weight, float eps, bool[3] output_mask, float weight_offset=0.0) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");

  m.def(
      "rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None, "
      "*, float weight_offset=0.0) -> Tensor");
  m.def(
      "rms_norm_forward(Tensor input, SymInt[] normalized_shape, Tensor? weight, float eps, float weight_offset=0.0) "
      "-> (Tensor output, Tensor rstd)");
  m.def(
      "rms_norm_backward(Tensor grad_output, Tensor input, SymInt[] normalized_shape, Tensor rstd, Tensor? weight, "
      "float eps, bool[2] output_mask, float weight_offset=0.0) -> (Tensor grad_input, Tensor grad_weight)");

  m.def(
      "batch_norm(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight=None, "
      "Tensor? bias=None, bool training=False, float momentum=0.1, float eps=1e-05) -> Tensor");
  m.def(
      "batch_norm_forward(Tensor input, Tensor? running_mean, Tensor? running_var, Tensor? weight, Tensor? bias, "
      "bool training, float eps) -> (Tensor output, Tensor mean, Tensor rstd, Tensor var)");
  m.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor mean, Tensor rstd, Tensor? weight, "
      "bool training, float eps, bool[3] output_mask) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "batch_norm_update_stats(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, "
      "SymInt count, float momentum) -> ()");

  m.def("second_derivative(Tensor input, Tensor a, Tensor b, int[] dim, float eps, bool centered=True) -> Tensor");

  m.def(
      "check_layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps, *, "
      "float weight_offset=0.0) -> ()");
  m.def(
      "check_rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps, *, "
      "float weight_offset=0.0) -> ()");
  m.def(
      "check_batch_norm(Tensor input, Tensor? running_mean, Tensor? running_var, Tensor? weight, Tensor? bias, "
      "bool training, float momentum, float eps) -> ()");
}
