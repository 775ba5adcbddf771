// module.cpp -- normext._C: the functions that eager calls take straight into C++, and what was built.
#define FMT_HEADER_ONLY  // python_arg_parser.h formats messages: torch exports none of fmt's functions
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/utils/python_arg_parser.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "batch_norm.h"
#include "enable.h"
#include "group_norm.h"
#include "row_norm.h"

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

// Whether giving up the GIL and taking it again would take longer than what it is given up for.
bool is_brief(const Tensor& input) {
  const auto count = input.sym_numel();
  return input.is_cpu() && !count.is_symbolic() && count < 4096;
}

// What a function of `input` returns, for Python. The GIL is released while it runs, unless that is brief: the kernels
// need no Python, and dispatch to Python takes it by itself.
inline PyObject* wrapped(Tensor&& tensor) { return THPVariable_Wrap(std::move(tensor)); }
inline PyObject* wrapped(std::tuple<Tensor, Tensor>&& tensors) {
  auto [first, second] = std::move(tensors);
  return Py_BuildValue("(NN)", THPVariable_Wrap(std::move(first)), THPVariable_Wrap(std::move(second)));
}

template <class Call>
PyObject* unlocked(const Tensor& input, const Call& call) {
  const auto run = [&] {
    std::optional<py::gil_scoped_release> released;
    if (!is_brief(input)) released.emplace();
    return call();
  };
  if constexpr (std::is_void_v<decltype(call())>) {
    run();
    Py_RETURN_NONE;
  } else {
    return wrapped(run());
  }
}

// An ordinary float is read at once: torch asks first whether it is one of three symbolic kinds, which costs 0.2 us.
double number(torch::PythonArgs& found, int i) {
  PyObject* const given = found.args[i];
  return given && PyFloat_CheckExact(given) ? PyFloat_AS_DOUBLE(given) : found.toDouble(i);
}

// An argument that torch's parser has found, for a parameter of type T.
template <class T>
auto read(torch::PythonArgs& found, int i) {
  if constexpr (std::is_same_v<T, const Tensor&>)
    return found.tensor(i);
  else if constexpr (std::is_same_v<T, const MaybeTensor&>)
    return found.optionalTensor(i);
  else if constexpr (std::is_same_v<T, c10::SymIntArrayRef>)
    return found.symintlist(i);
  else if constexpr (std::is_same_v<T, std::optional<double>>)
    return found.toDoubleOptional(i);
  else if constexpr (std::is_same_v<T, ActivationName>)
    return found.stringViewOptional(i);
  else if constexpr (std::is_same_v<T, bool>)
    return found.toBool(i);
  else if constexpr (std::is_same_v<T, int64_t>)
    return found.toInt64(i);
  else
    return number(found, i);
}

template <class R, class... Args>
constexpr size_t parameters(R (*)(Args...)) {
  return sizeof...(Args);
}

// A function for Python whose arguments are read by torch's own parser, so that what they may be, and what is said of
// others, is as in torch.
template <auto function, const auto& kSignature>
PyObject* parsed(PyObject*, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static torch::PythonArgParser parser({kSignature});
  const auto call = [&]<class R, class... Args, size_t... kPlace>(R (*)(Args...), std::index_sequence<kPlace...>) {
    torch::ParsedArgs<sizeof...(Args)> places;
    auto found = parser.parse(args, kwargs, places);
    const std::tuple<decltype(read<Args>(found, kPlace))...> values{read<Args>(found, kPlace)...};
    return unlocked(std::get<0>(values), [&] { return std::apply(function, values); });
  };
  return call(function, std::make_index_sequence<parameters(function)>{});
  END_HANDLE_TH_ERRORS
}

template <auto function, const auto& kSignature>
PyCFunction with_keywords() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(parsed<function, kSignature>));
}

// Whether a torch.func transform or a forward-mode AD level is in force. Every eager call asks.
PyObject* transformed(PyObject*, PyObject*) {
  HANDLE_TH_ERRORS
  return PyBool_FromLong(c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
                         torch::autograd::ForwardADLevel::try_get_by_idx(0) != nullptr);
  END_HANDLE_TH_ERRORS
}

// The order and the types are those of the function's parameters.
constexpr char kLayerNorm[] =
    "layer_norm(Tensor input, SymIntArrayRef normalized_shape, Tensor? weight=None, Tensor? bias=None, "
    "double eps=1e-05, *, double weight_offset=0.0)";
constexpr char kRMSNorm[] =
    "rms_norm(Tensor input, SymIntArrayRef normalized_shape, Tensor? weight=None, double? eps=None, "
    "*, double weight_offset=0.0)";
constexpr char kAddLayerNorm[] =
    "add_layer_norm(Tensor input, Tensor residual, SymIntArrayRef normalized_shape, Tensor? weight=None, "
    "Tensor? bias=None, double eps=1e-05, *, double weight_offset=0.0)";
constexpr char kAddRMSNorm[] =
    "add_rms_norm(Tensor input, Tensor residual, SymIntArrayRef normalized_shape, Tensor? weight=None, "
    "double? eps=None, *, double weight_offset=0.0)";
constexpr char kAdaptiveLayerNorm[] = "adaptive_layer_norm(Tensor input, Tensor scale, Tensor shift, double eps=1e-05)";
constexpr char kAdaptiveRMSNorm[] =
    "adaptive_rms_norm(Tensor input, Tensor scale, Tensor? shift=None, double? eps=None)";
constexpr char kBatchNorm[] =
    "batch_norm(Tensor input, Tensor? running_mean, Tensor? running_var, Tensor? weight=None, Tensor? bias=None, "
    "bool training=False, double momentum=0.1, double eps=1e-05, *, Tensor? residual=None, "
    "c10::string_view? activation=None, double slope=0.01)";
constexpr char kGroupNorm[] =
    "group_norm(Tensor input, int64_t num_groups, Tensor? weight=None, Tensor? bias=None, double eps=1e-05, *, "
    "c10::string_view? activation=None, double slope=0.01)";
constexpr char kInstanceNorm[] =
    "instance_norm(Tensor input, Tensor? running_mean=None, Tensor? running_var=None, Tensor? weight=None, "
    "Tensor? bias=None, bool use_input_stats=True, double momentum=0.1, double eps=1e-05, *, "
    "c10::string_view? activation=None, double slope=0.01)";

// A norm, and the check of its arguments.
#define NORMEXT_NORM(name, signature)                                                               \
  {#name, with_keywords<name, signature>(), METH_VARARGS | METH_KEYWORDS, nullptr}, {               \
    "check_" #name, with_keywords<check_##name, signature>(), METH_VARARGS | METH_KEYWORDS, nullptr \
  }
PyMethodDef functions[] = {NORMEXT_NORM(layer_norm, kLayerNorm),
                           NORMEXT_NORM(rms_norm, kRMSNorm),
                           NORMEXT_NORM(add_layer_norm, kAddLayerNorm),
                           NORMEXT_NORM(add_rms_norm, kAddRMSNorm),
                           NORMEXT_NORM(adaptive_layer_norm, kAdaptiveLayerNorm),
                           NORMEXT_NORM(adaptive_rms_norm, kAdaptiveRMSNorm),
                           NORMEXT_NORM(batch_norm, kBatchNorm),
                           NORMEXT_NORM(group_norm, kGroupNorm),
                           NORMEXT_NORM(instance_norm, kInstanceNorm),
                           {"transformed", transformed, METH_NOARGS, nullptr},
                           {nullptr, nullptr, 0, nullptr}};
#undef NORMEXT_NORM

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  if (PyModule_AddFunctions(m.ptr(), functions) != 0) throw py::error_already_set();
  m.def("check_not_differentiated", check_not_differentiated);
  m.def("supported_isas", supported_isas);
  m.def("get_isa", get_isa);
  m.def("set_isa", set_isa);
  m.def("replaceable_norms", replaceable_norms);
  m.def("enabled_norms", enabled_norms);
  m.def("set_enabled_norms", set_enabled_norms);
  m.attr("build_info") = build_info();
}

}  // namespace
}  // namespace normext
