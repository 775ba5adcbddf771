// norm_node.h -- the node that a norm's forward pass leaves in autograd's graph. torch::autograd::Function would do the
// same, in a general way that costs three microseconds more of each forward and backward call.
#pragma once
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <utility>
#include <vector>

#include "common.h"

namespace normext {

// What a backward pass needs of the forward pass; weight and bias may be undefined.
struct Saved {
  Tensor input, weight, mean, rstd, bias = {};
};

// Norm has a kName, options that it shows to `collect`, and gradients(grad_output, saved, mask). Its inputs are input,
// weight and bias. With a residual after the input they are four, its results are output and sum, the sum is saved in
// the input's place, and gradients() takes those of both results and returns all of them.
template <class Norm, size_t kInputs>
class NormNode : public torch::autograd::Node {
  static constexpr bool kAdds = kInputs == 4;
  using Wanted = std::array<bool, kInputs>;

 public:
  using variable_list = torch::autograd::variable_list;

  explicit NormNode(const Norm& norm) : norm_(norm) {}

  // After the results have their history.
  void save(const Tensor& input, const Tensor& weight, const Tensor& mean, const Tensor& rstd,
            const Tensor& bias = {}) {
    const Tensor* const tensors[] = {&input, &weight, &mean, &rstd, &bias};
    for (size_t i = 0; i < saved_.size(); ++i)
      if (tensors[i]->defined()) saved_[i] = {*tensors[i], kAdds && i == 0};
  }

  std::string name() const override { return Norm::kName; }

  variable_list apply(variable_list&& grads) override { return gradients(norm_, grads, unpack(), wanted()); }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved_) variable.reset_data();
  }

  // For compiled autograd: what a compiled graph depends on, and a call of a function without a node, which it records
  // on stand-ins for what was saved.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    for (const auto& variable : saved_) args.collect(variable, /*is_output=*/kAdds && &variable == saved_.data());
    norm_.collect(args);
  }
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    namespace compiled = torch::dynamo::autograd;
    for (auto& variable : saved_) swap.before(variable);
    const Saved saved = unpack();
    const Wanted wanted = this->wanted();
    compiled::PackedArgs args;
    args.pack(variable_list{saved.input, saved.weight, saved.mean, saved.rstd, saved.bias});
    args.pack(std::vector<bool>(wanted.begin(), wanted.end()));
    std::vector<at::TypePtr> types;
    for (const auto& argument : args.vec()) types.push_back(argument.type());
    const auto function = [norm = norm_](const variable_list& grads, const std::vector<at::IValue>& packed) {
      compiled::PackedArgs args(packed);
      const auto s = args.template unpack<variable_list>();
      const auto flags = args.template unpack<std::vector<bool>>();
      Wanted wanted;
      std::copy(flags.begin(), flags.end(), wanted.begin());
      return gradients(norm, grads, {s[0], s[1], s[2], s[3], s[4]}, wanted);
    };
    const auto& python = compiled::getPyCompilerInterface();
    const auto bound =
        python->bind_function(swap.get_py_compiler(), name(), function, types, /*is_custom_function=*/true);
    const auto metadata = compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
        compiled::get_input_metadata(next_edges()));
    auto result = python->call_function(swap.get_py_compiler(), "apply_functional", bound, grads, args.vec(), metadata);
    for (auto& variable : saved_) swap.after(variable);
    return result;
  }

 private:
  static variable_list gradients(const Norm& norm, const variable_list& grads, const Saved& saved, Wanted wanted) {
    if constexpr (kAdds) {
      return norm.gradients(grads, saved, wanted);
    } else {
      if (!grads[0].defined()) return variable_list(kInputs);
      auto [input, weight, bias] = norm.gradients(grads[0], saved, wanted);
      return {std::move(input), std::move(weight), std::move(bias)};
    }
  }

  Saved unpack() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {saved_[0].unpack(kAdds ? getptr() : nullptr), saved_[1].unpack(), saved_[2].unpack(), saved_[3].unpack(),
            saved_[4].unpack()};
  }

  // An absent weight or bias has no edge, and so no gradient.
  Wanted wanted() const {
    Wanted wanted;
    for (size_t i = 0; i < kInputs; ++i) wanted[i] = task_should_compute_output(i);
    return wanted;
  }

  Norm norm_;
  std::array<torch::autograd::SavedVariable, 5> saved_;
};

// A node with edges to a norm's inputs, in the kind of pointer that this torch keeps nodes in.
template <class Norm, class... Inputs>
auto make_node(const Norm& norm, const Inputs&... inputs) {
  using Node = NormNode<Norm, sizeof...(Inputs)>;
  const auto make = [&] {
    if constexpr (std::is_same_v<decltype(torch::autograd::Edge::function), std::shared_ptr<torch::autograd::Node>>)
      return std::shared_ptr<Node>(new Node(norm), [](Node* node) { deleteNode(node); });  // torch 2.11
    else
      return c10::make_intrusive<Node>(norm);
  };
  auto node = make();
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  return node;
}

}  // namespace normext
