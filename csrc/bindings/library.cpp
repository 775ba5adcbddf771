// library.cpp -- the schemas of torch.ops.normext.*
#include <torch/library.h>

TORCH_LIBRARY(normext, m) {
  // Operators take any layout, and kernels channels_last as it is. So inductor need not bring back the one that was
  // traced: beside its channels_last convolutions that would be a copy of each input.
  const auto def = [&](const char* schema) { m.def(schema, {at::Tag::flexible_layout}); };

  def("layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, "
      "*, float weight_offset=0.0) -> Tensor");
  def("layer_norm_forward(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps, "
      "float weight_offset=0.0) -> (Tensor output, Tensor mean, Tensor rstd)");
  def("layer_norm_backward(Tensor grad_output, Tensor input, SymInt[] normalized_shape, Tensor mean, Tensor rstd, "
      "Tensor? weight, float eps, bool[3] output_mask, float weight_offset=0.0) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");

  def("rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None, "
      "*, float weight_offset=0.0) -> Tensor");
  def("rms_norm_forward(Tensor input, SymInt[] normalized_shape, Tensor? weight, float eps, float weight_offset=0.0) "
      "-> (Tensor output, Tensor rstd)");
  def("rms_norm_backward(Tensor grad_output, Tensor input, SymInt[] normalized_shape, Tensor rstd, Tensor? weight, "
      "float eps, bool[2] output_mask, float weight_offset=0.0) -> (Tensor grad_input, Tensor grad_weight)");

  def("add_layer_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight=None, "
      "Tensor? bias=None, float eps=1e-05, *, float weight_offset=0.0) -> (Tensor output, Tensor sum)");
  def("add_rms_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None, "
      "*, float weight_offset=0.0) -> (Tensor output, Tensor sum)");
  def("add_norm_forward(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, "
      "float eps, float weight_offset, bool centered) -> (Tensor output, Tensor sum, Tensor mean, Tensor rstd)");
  // grad_residual is asked for where the residual's dtype is not the input's: else it is grad_input.
  def("add_norm_backward(Tensor grad_output, Tensor? grad_sum, Tensor sum, SymInt[] normalized_shape, Tensor? mean, "
      "Tensor rstd, Tensor? weight, float eps, bool[4] output_mask, float weight_offset, bool centered) "
      "-> (Tensor grad_input, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");

  def("adaptive_layer_norm(Tensor input, Tensor scale, Tensor shift, float eps=1e-05) -> Tensor");
  def("adaptive_rms_norm(Tensor input, Tensor scale, Tensor? shift=None, float? eps=None) -> Tensor");
  // scale and shift have the input's leading sizes up to some dimension, ones after it, and the last one.
  def("adaptive_norm_forward(Tensor input, Tensor scale, Tensor? shift, float eps, bool centered) "
      "-> (Tensor output, Tensor mean, Tensor rstd)");
  def("adaptive_norm_backward(Tensor grad_output, Tensor input, Tensor? mean, Tensor rstd, Tensor scale, float eps, "
      "bool[3] output_mask, bool centered) -> (Tensor grad_input, Tensor grad_scale, Tensor grad_shift)");

  def("batch_norm(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight=None, "
      "Tensor? bias=None, bool training=False, float momentum=0.1, float eps=1e-05, *, Tensor? residual=None, "
      "str? activation=None, float slope=0.01) -> Tensor");
  def("batch_norm_forward(Tensor input, Tensor? running_mean, Tensor? running_var, Tensor? weight, Tensor? bias, "
      "bool training, float eps, Tensor? residual=None, str? activation=None, float slope=0.01) "
      "-> (Tensor output, Tensor mean, Tensor rstd, Tensor var)");
  def("batch_norm_backward(Tensor grad_output, Tensor input, Tensor mean, Tensor rstd, Tensor? weight, "
      "bool training, float eps, bool[3] output_mask) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  def("batch_norm_activation_backward(Tensor grad_output, Tensor input, Tensor mean, Tensor rstd, Tensor? weight, "
      "Tensor? bias, Tensor? residual, bool training, float eps, bool[4] output_mask, str activation, "
      "float slope=0.01) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");
  def("batch_norm_update_stats(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, "
      "SymInt count, float momentum) -> ()");

  // BatchNorm over a batch in parts (see BatchNormMerge in csrc/ops): a part's moments, and the map by the whole's; a
  // part's sums, and the gradient by the whole's. All of them are float64.
  def("batch_norm_moments(Tensor input) -> Tensor moments");
  def("batch_norm_merge(Tensor parts) -> Tensor moments");
  def("batch_norm_map(Tensor input, Tensor moments, Tensor? weight, Tensor? bias, float eps, Tensor? residual=None, "
      "str? activation=None, float slope=0.01) -> (Tensor output, Tensor mean, Tensor rstd)");
  def("batch_norm_gradient_sums(Tensor grad_output, Tensor input, Tensor moments, Tensor mean, Tensor rstd) "
      "-> Tensor sums");
  def("batch_norm_gradient_map(Tensor grad_output, Tensor input, Tensor moments, Tensor mean, Tensor rstd, "
      "Tensor? weight, Tensor sums) -> Tensor grad_input");

  // The backward of GroupNorm is given the bias where there is an activation; `slope` is leaky_relu's.
  def("group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, *, "
      "str? activation=None, float slope=0.01) -> Tensor");
  def("group_norm_forward(Tensor input, SymInt num_groups, Tensor? weight, Tensor? bias, float eps, "
      "str? activation=None, float slope=0.01) -> (Tensor output, Tensor mean, Tensor rstd, Tensor var)");
  def("group_norm_backward(Tensor grad_output, Tensor input, SymInt num_groups, Tensor mean, Tensor rstd, "
      "Tensor? weight, Tensor? bias, float eps, bool[3] output_mask, str? activation=None, float slope=0.01) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  def("instance_norm(Tensor input, Tensor(a!)? running_mean=None, Tensor(b!)? running_var=None, Tensor? weight=None, "
      "Tensor? bias=None, bool use_input_stats=True, float momentum=0.1, float eps=1e-05, *, str? activation=None, "
      "float slope=0.01) -> Tensor");

  def("second_derivative(Tensor input, Tensor a, Tensor b, int[] dim, float eps, bool centered=True) -> Tensor");

  def("check_layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps, *, "
      "float weight_offset=0.0) -> ()");
  def("check_rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps, *, "
      "float weight_offset=0.0) -> ()");
  def("check_add_layer_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, "
      "float eps, *, float weight_offset=0.0) -> ()");
  def("check_add_rms_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, float? eps, "
      "*, float weight_offset=0.0) -> ()");
  def("check_adaptive_layer_norm(Tensor input, Tensor scale, Tensor shift, float eps) -> ()");
  def("check_adaptive_rms_norm(Tensor input, Tensor scale, Tensor? shift, float? eps) -> ()");
  def("check_batch_norm(Tensor input, Tensor? running_mean, Tensor? running_var, Tensor? weight, Tensor? bias, "
      "bool training, float momentum, float eps, *, Tensor? residual, str? activation, float slope) -> ()");
  def("check_group_norm(Tensor input, int num_groups, Tensor? weight, Tensor? bias, float eps, *, str? activation, "
      "float slope) -> ()");
  def("check_instance_norm(Tensor input, Tensor? running_mean, Tensor? running_var, Tensor? weight, Tensor? bias, "
      "bool use_input_stats, float momentum, float eps, *, str? activation, float slope) -> ()");
}
