// module.cpp -- normext._C: the functions that eager calls take straight into C++, and what was built.
#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "batch_norm.h"
#include "layer_norm.h"

namespace py = pybind11;

namespace normext {
namespace {

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const auto& [isa, name] : cpu::kIsas)
    if (cpu::supported(isa)) names.emplace_back(name);
  return names;
}

void set_isa(const std::string& name) {
  const auto* const end = std::end(cpu::kIsas);
  const auto* const found =
      std::find_if(cpu::kIsas, end, [&](const cpu::NamedIsa& known) { return known.name == name; });
  TORCH_CHECK_VALUE(found != end && cpu::supported(found->isa), "expected an instruction set this machine has (",
                    supported_isas(), "), but got ", name);
  cpu::set_isa(found->isa);
}

std::string get_isa() {
  for (const auto& [isa, name] : cpu::kIsas)
    if (isa == cpu::current_isa()) return name;
  return "";
}

py::dict build_info() {
  py::dict info;
  info["torch"] = NORMEXT_TORCH_VERSION;
  info["compiler"] = NORMEXT_COMPILER;
  info["instruction_sets"] = NORMEXT_INSTRUCTION_SETS;
  info["openmp"] = cpu::openmp_version();
  info["cuda_architectures"] = NORMEXT_CUDA_ARCHITECTURES;
  info["nvcc"] = NORMEXT_NVCC;
  return info;
}

// The GIL is released: the kernels need no Python, and dispatch to Python takes it by itself.
Tensor layer_norm_python(const Tensor& input, const std::vector<c10::SymInt>& normalized_shape,
                         const MaybeTensor& weight, const MaybeTensor& bias, double eps) {
  const py::gil_scoped_release released;
  return layer_norm(input, normalized_shape, weight, bias, eps);
}

Tensor batch_norm_python(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                         const MaybeTensor& weight, const MaybeTensor& bias, bool training, double momentum,
                         double eps) {
  const py::gil_scoped_release released;
  return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("layer_norm", layer_norm_python);
  m.def("batch_norm", batch_norm_python);
  m.def("supported_isas", supported_isas);
  m.def("get_isa", get_isa);
  m.def("set_isa", set_isa);
  m.attr("build_info") = build_info();
}

}  // namespace
}  // namespace normext
