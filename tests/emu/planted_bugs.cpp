// planted_bugs.cpp -- planted_bugs <bug> <fixed|buggy> <forward|backward|seed>: runs one planted bug in one schedule.
//
// Prints what came out: "right", "wrong values" or "error: ..."; or a sanitizer ends the program.
#include "planted_bugs.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

using namespace normext::test;

emu::Options schedule(const std::string& name) {
  if (name == "forward") return {.order = emu::Order::forward};
  if (name == "backward") return {.order = emu::Order::backward};
  return {.order = emu::Order::random, .seed = static_cast<unsigned>(std::stoul(name))};
}

bool right(const Bug& bug, bool fixed) {
  const normext::cuda::Launch& how = fixed ? bug.how : bug.buggy;
  const size_t size = size_t{how.grid.x} * how.block.x;
  std::vector<float> x(size), y(size, NAN);
  for (size_t i = 0; i < size; ++i) x[i] = input(i);
  normext::cuda::launch(bug.kernel, how, x.data(), y.data(), fixed);
  for (size_t i = 0; i < size; ++i) {
    if (y[i] != bug.expected(i)) return false;
  }
  return true;
}

void run(const Bug& bug, bool fixed) {
  try {
    std::puts(right(bug, fixed) ? "right" : "wrong values");
  } catch (const emu::Error& error) {
    std::printf("error: %s\n", error.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return EXIT_FAILURE;
  emu::options = schedule(argv[3]);
  for (const auto& bugs :
       {bugs_of_synchronization(), bugs_of_memory(), bugs_of_clusters(), bugs_of_launches(), bugs_of_transfers()}) {
    for (const Bug& bug : bugs) {
      if (std::string(bug.name) != argv[1]) continue;
      run(bug, std::string(argv[2]) == "fixed");
      return EXIT_SUCCESS;
    }
  }
  std::printf("no bug is called %s\n", argv[1]);
  return EXIT_FAILURE;
}
