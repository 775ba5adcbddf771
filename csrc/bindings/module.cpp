// module.cpp -- normext._C: the functions that eager calls take straight into C++, and what was built.
#define FMT_HEADER_ONLY  // python_arg_parser.h formats messages: torch exports none of fmt's functions
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/utils/python_arg_parser.h>

#include <algorithm>
#include <iterator>
#include <string>
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

// Arguments are read by torch's own parser, so that what they may be, and what is said of others, is as in torch. The
// GIL is released while `call` runs: the kernels need no Python, and dispatch to Python takes it by itself.
inline PyObject* wrapped(Tensor&& tensor) { return THPVariable_Wrap(std::move(tensor)); }
inline PyObject* wrapped(std::tuple<Tensor, Tensor>&& tensors) {
  auto [first, second] = std::move(tensors);
  return Py_BuildValue("(NN)", THPVariable_Wrap(std::move(first)), THPVariable_Wrap(std::move(second)));
}

template <class Call>
PyObject* unlocked(const Call& call) {
  const auto run = [&] {
    const py::gil_scoped_release released;
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
double to_double(torch::PythonArgs& arguments, int i) {
  PyObject* const given = arguments.args[i];
  return given && PyFloat_CheckExact(given) ? PyFloat_AS_DOUBLE(given) : arguments.toDouble(i);
}

template <auto function>
PyObject* layer_norm_python(PyObject*, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static torch::PythonArgParser parser(
      {"layer_norm(Tensor input, SymIntArrayRef normalized_shape, Tensor? weight=None, Tensor? bias=None, "
       "double eps=1e-05, *, double weight_offset=0.0)"});
  torch::ParsedArgs<6> parsed;
  auto r = parser.parse(args, kwargs, parsed);
  return unlocked([input = r.tensor(0), normalized_shape = r.symintlist(1), weight = r.optionalTensor(2),
                   bias = r.optionalTensor(3), eps = to_double(r, 4), weight_offset = to_double(r, 5)] {
    return function(input, normalized_shape, weight, bias, eps, weight_offset);
  });
  END_HANDLE_TH_ERRORS
}

template <auto function>
PyObject* rms_norm_python(PyObject*, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static torch::PythonArgParser parser(
      {"rms_norm(Tensor input, SymIntArrayRef normalized_shape, Tensor? weight=None, double? eps=None, "
       "*, double weight_offset=0.0)"});
  torch::ParsedArgs<5> parsed;
  auto r = parser.parse(args, kwargs, parsed);
  return unlocked([input = r.tensor(0), normalized_shape = r.symintlist(1), weight = r.optionalTensor(2),
                   eps = r.toDoubleOptional(3), weight_offset = to_double(r, 4)] {
    return function(input, normalized_shape, weight, eps, weight_offset);
  });
  END_HANDLE_TH_ERRORS
}

template <auto function>
PyObject* add_layer_norm_python(PyObject*, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static torch::PythonArgParser parser(
      {"add_layer_norm(Tensor input, Tensor residual, SymIntArrayRef normalized_shape, Tensor? weight=None, "
       "Tensor? bias=None, double eps=1e-05, *, double weight_offset=0.0)"});
  torch::ParsedArgs<7> parsed;
  auto r = parser.parse(args, kwargs, parsed);
  return unlocked([input = r.tensor(0), residual = r.tensor(1), normalized_shape = r.symintlist(2),
                   weight = r.optionalTensor(3), bias = r.optionalTensor(4), eps = to_double(r, 5),
                   weight_offset = to_double(r, 6)] {
    return function(input, residual, normalized_shape, weight, bias, eps, weight_offset);
  });
  END_HANDLE_TH_ERRORS
}

template <auto function>
PyObject* add_rms_norm_python(PyObject*, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static torch::PythonArgParser parser(
      {"add_rms_norm(Tensor input, Tensor residual, SymIntArrayRef normalized_shape, Tensor? weight=None, "
       "double? eps=None, *, double weight_offset=0.0)"});
  torch::ParsedArgs<6> parsed;
  auto r = parser.parse(args, kwargs, parsed);
  return unlocked([input = r.tensor(0), residual = r.tensor(1), normalized_shape = r.symintlist(2),
                   weight = r.optionalTensor(3), eps = r.toDoubleOptional(4), weight_offset = to_double(r, 5)] {
    return function(input, residual, normalized_shape, weight, eps, weight_offset);
  });
  END_HANDLE_TH_ERRORS
}

template <auto function>
PyObject* adaptive_layer_norm_python(PyObject*, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static torch::PythonArgParser parser(
      {"adaptive_layer_norm(Tensor input, Tensor scale, Tensor shift, double eps=1e-05)"});
  torch::ParsedArgs<4> parsed;
  auto r = parser.parse(args, kwargs, parsed);
  return unlocked([input = r.tensor(0), scale = r.tensor(1), shift = r.tensor(2), eps = to_double(r, 3)] {
    return function(input, scale, shift, eps);
  });
  END_HANDLE_TH_ERRORS
}

template <auto function>
PyObject* adaptive_rms_norm_python(PyObject*, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static torch::PythonArgParser parser(
      {"adaptive_rms_norm(Tensor input, Tensor scale, Tensor? shift=None, double? eps=None)"});
  torch::ParsedArgs<4> parsed;
  auto r = parser.parse(args, kwargs, parsed);
  return unlocked([input = r.tensor(0), scale = r.tensor(1), shift = r.optionalTensor(2), eps = r.toDoubleOptional(3)] {
    return function(input, scale, shift, eps);
  });
  END_HANDLE_TH_ERRORS
}

template <auto function>
PyObject* batch_norm_python(PyObject*, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static torch::PythonArgParser parser(
      {"batch_norm(Tensor input, Tensor? running_mean, Tensor? running_var, Tensor? weight=None, Tensor? bias=None, "
       "bool training=False, double momentum=0.1, double eps=1e-05, *, Tensor? residual=None, "
       "c10::string_view? activation=None, double slope=0.01)"});
  torch::ParsedArgs<11> parsed;
  auto r = parser.parse(args, kwargs, parsed);
  return unlocked([input = r.tensor(0), running_mean = r.optionalTensor(1), running_var = r.optionalTensor(2),
                   weight = r.optionalTensor(3), bias = r.optionalTensor(4), training = r.toBool(5),
                   momentum = to_double(r, 6), eps = to_double(r, 7), residual = r.optionalTensor(8),
                   activation = r.stringViewOptional(9), slope = to_double(r, 10)] {
    return function(input, running_mean, running_var, weight, bias, training, momentum, eps, residual, activation,
                    slope);
  });
  END_HANDLE_TH_ERRORS
}

template <auto function>
PyObject* group_norm_python(PyObject*, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static torch::PythonArgParser parser(
      {"group_norm(Tensor input, int64_t num_groups, Tensor? weight=None, Tensor? bias=None, double eps=1e-05, *, "
       "c10::string_view? activation=None, double slope=0.01)"});
  torch::ParsedArgs<7> parsed;
  auto r = parser.parse(args, kwargs, parsed);
  return unlocked(
      [input = r.tensor(0), num_groups = r.toInt64(1), weight = r.optionalTensor(2), bias = r.optionalTensor(3),
       eps = to_double(r, 4), activation = r.stringViewOptional(5),
       slope = to_double(r, 6)] { return function(input, num_groups, weight, bias, eps, activation, slope); });
  END_HANDLE_TH_ERRORS
}

template <auto function>
PyObject* instance_norm_python(PyObject*, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static torch::PythonArgParser parser(
      {"instance_norm(Tensor input, Tensor? running_mean=None, Tensor? running_var=None, Tensor? weight=None, "
       "Tensor? bias=None, bool use_input_stats=True, double momentum=0.1, double eps=1e-05, *, "
       "c10::string_view? activation=None, double slope=0.01)"});
  torch::ParsedArgs<10> parsed;
  auto r = parser.parse(args, kwargs, parsed);
  return unlocked([input = r.tensor(0), running_mean = r.optionalTensor(1), running_var = r.optionalTensor(2),
                   weight = r.optionalTensor(3), bias = r.optionalTensor(4), use_input_stats = r.toBool(5),
                   momentum = to_double(r, 6), eps = to_double(r, 7), activation = r.stringViewOptional(8),
                   slope = to_double(r, 9)] {
    return function(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, activation, slope);
  });
  END_HANDLE_TH_ERRORS
}

template <auto function>
PyCFunction with_keywords() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// A norm, and the check of its arguments.
#define NORMEXT_NORM(name)                                                                              \
  {#name, with_keywords<name##_python<name>>(), METH_VARARGS | METH_KEYWORDS, nullptr}, {               \
    "check_" #name, with_keywords<name##_python<check_##name>>(), METH_VARARGS | METH_KEYWORDS, nullptr \
  }
PyMethodDef norms[] = {NORMEXT_NORM(layer_norm),          NORMEXT_NORM(rms_norm),
                       NORMEXT_NORM(add_layer_norm),      NORMEXT_NORM(add_rms_norm),
                       NORMEXT_NORM(adaptive_layer_norm), NORMEXT_NORM(adaptive_rms_norm),
                       NORMEXT_NORM(batch_norm),          NORMEXT_NORM(group_norm),
                       NORMEXT_NORM(instance_norm),       {nullptr, nullptr, 0, nullptr}};
#undef NORMEXT_NORM

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  if (PyModule_AddFunctions(m.ptr(), norms) != 0) throw py::error_already_set();
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
