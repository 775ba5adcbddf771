// batch_norm.h -- normext::batch_norm called through torch's dispatcher.
#pragma once
#include "channel_norm.h"

namespace normext {

Tensor batch_norm(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                  const MaybeTensor& weight, const MaybeTensor& bias, bool training, double momentum, double eps,
                  const MaybeTensor& residual, ActivationName activation, double slope);

// Throws what batch_norm would throw. Tensors of torch.func's transforms may come as they are.
void check_batch_norm(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                      const MaybeTensor& weight, const MaybeTensor& bias, bool training, double momentum, double eps,
                      const MaybeTensor& residual, ActivationName activation, double slope);

// Adds statistics of a batch, `count` values each, to the running ones.
void update_batch_norm_statistics(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean,
                                  const Tensor& var, c10::SymInt count, double momentum);

// Throws what torch throws for running statistics that a derivative is asked of. Training does not read them: a tangent
// is then let be.
void check_not_differentiated(const MaybeTensor& running_mean, const MaybeTensor& running_var, bool training);

// The kernels: no dispatcher, no derivative.
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_forward_kernel(const Tensor& input,
                                                                     const MaybeTensor& running_mean,
                                                                     const MaybeTensor& running_var,
                                                                     const MaybeTensor& weight, const MaybeTensor& bias,
                                                                     bool training, double eps);
Gradients batch_norm_backward_kernel(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                     const Tensor& rstd, const MaybeTensor& weight, bool training, double eps,
                                     Mask mask);
void batch_norm_update_stats_kernel(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean,
                                    const Tensor& var, int64_t count, double momentum);

}  // namespace normext
