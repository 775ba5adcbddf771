#include "enable.h"

#include <ATen/Dispatch.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>

namespace normext {
namespace {

struct Device {
  c10::DispatchKey key;
  Where where;
};

// Where this build has kernels of its own.
constexpr Device kDevices[] = {
    {c10::DispatchKey::CPU, Where::cpu},
#ifdef NORMEXT_CUDA
    {c10::DispatchKey::CUDA, Where::cuda},
#endif
};

bool includes(Where places, Where place) { return (static_cast<uint8_t>(places) & static_cast<uint8_t>(place)) != 0; }

const std::vector<Replacement>& table() {
  static const auto table = [] {
    std::vector<Replacement> all;
    for (const auto& some : {replace_row_norms(), replace_channel_norms(), replace_group_norms()})
      all.insert(all.end(), some.begin(), some.end());
    return all;
  }();
  return table;
}

// The norms that can be enabled, in the table's order; a norm's place is its bit in `enabled`.
const std::vector<std::string>& names() {
  static const auto names = [] {
    std::vector<std::string> names;
    for (const auto& replacement : table())
      if (std::find(names.begin(), names.end(), replacement.norm) == names.end()) names.emplace_back(replacement.norm);
    return names;
  }();
  return names;
}

std::atomic<uint64_t> enabled{0};

uint64_t bit(const std::string& norm) {
  const auto found = std::find(names().begin(), names().end(), norm);
  TORCH_CHECK_VALUE(found != names().end(), "expected norms out of ", names(), ", but got ", norm);
  return uint64_t{1} << (found - names().begin());
}

// Says nothing: torch warns where a kernel is replaced, which is what was asked for.
struct Quiet : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

using Libraries = std::vector<std::unique_ptr<torch::Library>>;

// Registers what the norm has at each device: the kernels that stay, or those that go when the libraries do.
Libraries registered(const std::string& norm, bool staying) {
  Libraries libraries;
  for (const auto& [key, where] : kDevices) {
    auto library = std::make_unique<torch::Library>(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
    for (const auto& replacement : table()) {
      if (replacement.norm != norm || !includes(replacement.where, where)) continue;
      if (includes(replacement.stays, where) != staying) continue;
      const std::string name = std::string("aten::") + replacement.name;
      replacement.capture(c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), replacement.overload), key);
      const std::string overload = *replacement.overload ? std::string(".") + replacement.overload : "";
      library->impl((name + overload).c_str(), replacement.kernel());
    }
    libraries.push_back(std::move(library));
  }
  return libraries;
}

}  // namespace

// On the CPU a short array is mapped here: a call through torch's dispatcher costs as much as a small norm.
static bool is_short(const Tensor& tensor) {
  return tensor.is_cpu() && tensor.numel() <= 4096 && tensor.is_contiguous();
}

Tensor as_type(const Tensor& tensor, at::ScalarType type) {
  if (!tensor.defined() || tensor.scalar_type() == type) return tensor;
  const auto half = type == at::kFloat ? tensor.scalar_type() : type;
  if (!is_short(tensor) || !at::isReducedFloatingType(half) || (half == type && tensor.scalar_type() != at::kFloat))
    return tensor.to(type);
  Tensor result = empty(tensor, tensor.sym_sizes(), type);
  AT_DISPATCH_REDUCED_FLOATING_TYPES(half, "as_type", [&] {
    if (half == type)
      std::copy_n(tensor.const_data_ptr<float>(), tensor.numel(), result.mutable_data_ptr<scalar_t>());
    else
      std::copy_n(tensor.const_data_ptr<scalar_t>(), tensor.numel(), result.mutable_data_ptr<float>());
  });
  return result;
}

Tensor rstd_of(const Tensor& var, double eps) {
  if (!is_short(var)) return var.add(eps).rsqrt_();
  Tensor result = empty(var, var.sym_sizes(), var.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(var.scalar_type(), "rstd_of", [&] {
    const auto rstd = [eps](double v) { return static_cast<scalar_t>(1 / std::sqrt(v + eps)); };
    const auto* const first = var.const_data_ptr<scalar_t>();
    std::transform(first, first + var.numel(), result.mutable_data_ptr<scalar_t>(), rstd);
  });
  return result;
}

std::vector<std::string> replaceable_norms() { return names(); }

bool is_enabled(const char* norm) { return (enabled.load(std::memory_order_relaxed) & bit(norm)) != 0; }

std::vector<std::string> enabled_norms() {
  std::vector<std::string> norms;
  for (const auto& norm : names())
    if (is_enabled(norm.c_str())) norms.push_back(norm);
  return norms;
}

void set_enabled_norms(const std::vector<std::string>& norms) {
  // Never destroyed: when the process ends, torch's dispatcher may be gone first.
  static auto& mutex = *new std::mutex;
  static auto& replacing = *new std::map<std::string, Libraries>;
  static auto& staying = *new std::map<std::string, Libraries>;

  uint64_t wanted = 0;
  for (const auto& norm : norms) wanted |= bit(norm);
  const std::lock_guard<std::mutex> lock(mutex);
  Quiet quiet;
  const c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  for (const auto& norm : names()) {
    if ((wanted & bit(norm)) == 0) {
      replacing.erase(norm);
    } else if (!replacing.count(norm)) {
      if (!staying.count(norm)) staying[norm] = registered(norm, true);  // backward kernels come before forward ones
      replacing[norm] = registered(norm, false);
    }
  }
  enabled = wanted;
}

}  // namespace normext
