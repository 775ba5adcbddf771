// layer_norm.h -- normext::layer_norm called through torch's dispatcher.
#pragma once
#include "common.h"

namespace normext {

Tensor layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                  const MaybeTensor& bias, double eps);

// Throws what layer_norm would throw. Tensors of torch.func's transforms may come as they are.
void check_layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                      const MaybeTensor& bias, double eps);

}  // namespace normext
