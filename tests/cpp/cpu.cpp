// cpu.cpp -- the CPU's kernels: every instruction set, some numbers of threads, with and without streaming.
#include "backend.h"
#include "cpu/cache.h"
#include "cpu/isa.h"

namespace normext::test {
namespace {

// The kernels use one thread for less than this. The largest cases occupy 5 threads, the others 2 or 3.
constexpr int64_t kElementsPerThread = 16384;
constexpr int64_t kCache = 32 << 20;

int thread_count;

struct Machine {
  int threads;
  int64_t cache;  // bytes; nothing fits in no cache, and outputs are streamed
};

std::vector<Setting> every_isa(std::initializer_list<Machine> machines) {
  std::vector<Setting> settings;
  for (const cpu::NamedIsa& isa : cpu::kIsas) {
    if (!cpu::supported(isa.isa)) continue;
    for (const Machine machine : machines) {
      const std::string name =
          isa.name + std::string(", threads ") + std::to_string(machine.threads) + (machine.cache ? "" : ", streaming");
      settings.push_back({name, [&isa, machine] {
                            cpu::set_isa(isa.isa);
                            cpu::set_last_level_cache(machine.cache);
                            thread_count = machine.threads;
                          }});
    }
  }
  return settings;
}

// clang-format off
constexpr int64_t kBatchNormShapes[][3] = {  // batch, channels, plane
    // next to nothing
    {1, 1, 1}, {1, 4, 1}, {2, 1, 1}, {2, 3, 1},
    // short planes and few columns
    {5, 2, 2}, {9, 4, 1}, {3, 5, 7}, {2, 7, 15}, {2, 8, 16}, {3, 9, 17}, {3, 15, 1}, {3, 16, 1}, {3, 17, 1}, {5, 31, 3},
    {5, 33, 1}, {17, 63, 1}, {17, 64, 1}, {17, 65, 1}, {16, 3, 49}, {300, 3, 1}, {1000, 1, 1},
    // planes of some length
    {3, 2, 63}, {3, 2, 64}, {3, 2, 65}, {17, 3, 33}, {16, 2, 63}, {17, 3, 70}, {2, 3, 255}, {2, 2, 257}, {2, 3, 1025}, {1, 1, 8193},
    // wide rows
    {2, 67, 49}, {3, 129, 5}, {2, 257, 4}, {1, 1023, 1}, {2, 1025, 1}, {3, 33, 63},
    // few channels and many, long planes and short
    {1, 1, 20000}, {2, 3, 2731}, {17001, 1, 1}, {1, 1, 70000}, {1, 17001, 1}, {1, 2, 20000}, {1, 3, 8193},
    {1000, 17, 1}, {250, 72, 1}, {70, 300, 1}, {6, 67, 49}, {1100, 5, 3}, {2, 70, 200}, {4500, 3, 5},
    // channels that threads share, wide rows of several blocks, blocks of a few short planes
    {4, 2, 34000}, {40, 2100, 1}, {19, 11, 300},
    // planes that share lines, in blocks of several, and planes walked as columns or not by the number of samples
    {3, 40, 113}, {2, 24, 1000}, {17, 3, 100}, {33, 3, 100}, {33, 3, 64}};

constexpr int64_t kGroupNormShapes[][4] = {  // batch, channels, plane, groups
    // next to nothing; planes shorter than a vector, of about one, longer
    {1, 1, 2, 1}, {3, 4, 1, 2}, {2, 6, 7, 3}, {2, 4, 33, 4}, {3, 8, 64, 1}, {1, 4, 1025, 2},
    // wide rows, groups that threads share, and groups of one channel
    {2, 70, 49, 7}, {5, 9, 150, 9}, {2, 2, 40000, 1}, {9, 48, 81, 12}};
// clang-format on

}  // namespace

const bool kRoundsGradientOfSum = true;
const int64_t kLarge = kElementsPerThread;

const std::vector<Setting>& settings(int64_t elements) {
  static const std::vector<Setting> small = every_isa({{1, 0}, {5, kCache}}), large = every_isa({{2, 0}, {5, kCache}});
  return elements < kLarge ? small : large;
}

template <class Op>
void run(const Op& op) {
  cpu::run(op, thread_count);
}
template void run(const RowNormForward&);
template void run(const RowNormBackward&);
template void run(const BatchNormForward&);
template void run(const BatchNormBackward&);
template void run(const BatchNormMerge&);
template void run(const BatchNormUpdate&);
template void run(const GroupNormForward&);
template void run(const GroupNormBackward&);

std::vector<int64_t> columns_of_sums(DType, DType) { return {}; }

std::vector<RowNormShape> row_norm_shapes() {
  std::vector<RowNormShape> shapes;
  // around the vectors' widths and what unrolling makes of them
  for (const int64_t columns : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 257}) {
    for (const int64_t rows : {1, 2, 7}) shapes.push_back({rows, columns});
  }
  for (const int64_t columns : {1000, 1023, 1025, 4097}) shapes.push_back({3, columns});  // several partial sums
  shapes.insert(shapes.end(), {{300, 1}, {129, 33}, {1, 8193}});
  // fewer rows than threads, more, and many of them; RMSNorm's work is cut as LayerNorm's is
  shapes.insert(shapes.end(), {{1, 20000, false},
                               {1, 70000, false},
                               {2, 20000},
                               {3, 25000, false},
                               {5, 16385, false},
                               {5, 8193},
                               {3, 90000},
                               {33, 1025},
                               {21, 700},
                               {300, 64},
                               {1400, 25},
                               {2100, 17, false},
                               {35001, 1, false}});
  return shapes;
}

std::vector<ChannelNormShape> batch_norm_shapes() {
  std::vector<ChannelNormShape> shapes;
  for (const bool channels_last : {false, true}) {
    for (const auto& [batch, channels, plane] : kBatchNormShapes) {
      if (plane == 1 && channels_last) continue;  // it is the same
      shapes.push_back({batch, channels, plane, channels_last});
    }
  }
  return shapes;
}

std::vector<GroupNormShape> group_norm_shapes() {
  std::vector<GroupNormShape> shapes;
  for (const auto& [batch, channels, plane, groups] : kGroupNormShapes) {
    shapes.push_back({{batch, channels, plane, false}, groups});
    if (plane > 1) shapes.push_back({{batch, channels, plane, true}, groups});
  }
  return shapes;
}

}  // namespace normext::test
