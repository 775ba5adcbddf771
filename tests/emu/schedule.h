// schedule.h -- the order in which clusters, warps and lanes take turns.
#pragma once
#include <algorithm>
#include <bit>
#include <numeric>
#include <random>
#include <vector>

#include "hierarchy.h"

namespace emu {

enum class Order { forward, backward, random };

// The orders find different bugs: use them all.
struct Options {
  Order order = Order::forward;
  unsigned seed = 1;  // of Order::random
};
inline Options options;

class Schedule {
 public:
  explicit Schedule(const Options& how) : order_(how.order), random_(how.seed * 0x9e3779b9u) {}

  std::vector<size_t> permutation(size_t count) {
    std::vector<size_t> items(count);
    std::iota(items.begin(), items.end(), size_t{0});
    if (order_ == Order::backward) std::reverse(items.begin(), items.end());
    shuffle(items);
    return items;
  }
  // Does nothing in the orders that are not random.
  void shuffle(std::vector<size_t>& items) {
    if (order_ == Order::random) std::shuffle(items.begin(), items.end(), random_);
  }
  // One of the bits that are set.
  unsigned pick(unsigned bits) {
    switch (order_) {
      case Order::forward:
        return std::countr_zero(bits);
      case Order::backward:
        return kWarpSize - 1 - std::countl_zero(bits);
      default:
        const int turn = static_cast<int>(random_() % kWarpSize);
        return (std::countr_zero(std::rotr(bits, turn)) + turn) % kWarpSize;
    }
  }
  // One of so many transfers to be the next that is through: the first, the last, or any.
  size_t next_of(size_t count) {
    if (order_ == Order::random) return random_() % count;
    return order_ == Order::forward ? 0 : count - 1;
  }
  // Whether one is through before it has to be.
  bool is_early() { return order_ == Order::random && random_() % 2 == 0; }

 private:
  Order order_;
  std::minstd_rand random_;
};

}  // namespace emu
