// emulated.cpp -- CUDA's kernels, emulated: every schedule, on a device with clusters and one without.
#include "backend.h"
#include "emulator.h"
#include "run_emulated.h"

namespace normext::test {
namespace {

struct Schedule {
  emu::Order order;
  const char* name;
};
constexpr Schedule kSchedules[] = {
    {emu::Order::forward, "forward"}, {emu::Order::backward, "backward"}, {emu::Order::random, "random"}};

// Few SMs, so that few rows make blocks go round more than once; and more, so that there are many blocks' sums to add.
// 48 KB of shared memory are the least that a GPU gives.
struct NamedDevice {
  emu::Device device;
  const char* name;
};
const NamedDevice kDevices[] = {{{.sm_count = 2, .max_shared_bytes = 227 << 10, .has_clusters = true}, "clusters"},
                                {{.sm_count = 24, .max_shared_bytes = 48 << 10, .has_clusters = false}, "no clusters"}};

// Forward on both devices, the other schedules on one.
std::vector<Setting> make_settings() {
  std::vector<Setting> settings;
  for (const NamedDevice& device : kDevices) {
    for (const Schedule& schedule : kSchedules) {
      if (schedule.order == (device.device.has_clusters ? emu::Order::random : emu::Order::backward)) continue;
      settings.push_back({schedule.name + std::string(" schedule, ") + device.name, [&] {
                            emu::options.order = schedule.order;
                            emu::device = device.device;
                          }});
    }
  }
  return settings;
}

}  // namespace

const bool kTakesRowKinds = false;
const int64_t kLarge = 4000;

const std::vector<Setting>& settings(int64_t) {
  static const std::vector<Setting> every = make_settings();
  return every;
}

template <class Op>
void run(const Op& op) {
  run_emulated(op);
}
template void run(const RowNormForward&);
template void run(const RowNormBackward&);
template void run(const BatchNormForward&);
template void run(const BatchNormBackward&);
template void run(const BatchNormUpdate&);

std::vector<RowNormShape> row_norm_shapes() {
  std::vector<RowNormShape> shapes;
  // A part of a warp a row: one vector each, of 2, 4 or 8 elements, that the row fills or does not.
  for (const int64_t columns : {1, 2, 7, 8, 9, 16, 32, 33, 64, 65, 128}) {
    for (const int64_t rows : {1, 3, 33}) shapes.push_back({rows, columns});
  }
  // From there on each number of lanes and vectors, for each size of element: at its limit and one beyond.
  for (const int64_t columns : {129, 192, 256, 257, 511, 512, 513, 768, 1024, 1025, 2047, 2048})
    shapes.push_back({3, columns});
  for (const int64_t columns : {2049, 3072, 4096, 4097, 8192, 8193, 16384, 16385}) shapes.push_back({2, columns});
  // Clusters of two backward where there are any, and rows that fit nowhere.
  for (const int64_t columns : {32768, 40000}) shapes.push_back({1, columns});
  for (const int64_t columns : {32769, 65536, 65600, 131073}) shapes.push_back({1, columns, false});
  // Blocks that go round several times, and more lines of partial sums than are added up at once.
  // Two rows to a block, no row fetched ahead, rows of any alignment.
  shapes.insert(shapes.end(), {{200, 24}, {4000, 8}, {40, 300}, {5, 9000}, {41, 1536}, {7, 16384, false}, {61, 1031}});
  return shapes;
}

// clang-format off
constexpr int64_t kBatchNormShapes[][3] = {  // batch, channels, plane
    // one value, few values, one column
    {1, 1, 1}, {2, 1, 1}, {1, 4, 1}, {3, 2, 1}, {300, 1, 1},
    // columns: fewer than a vector, several pixels a row, a vector, more than a warp of vectors, many rows
    {16, 3, 1}, {17, 3, 1}, {40, 5, 1}, {33, 8, 1}, {65, 16, 1}, {70, 24, 1}, {9, 64, 1}, {5, 257, 1}, {3, 264, 1},
    {2, 520, 1}, {1500, 3, 1}, {1500, 8, 1}, {600, 17, 1},
    // planes: no multiple of a vector, one vector, several; small blocks, large ones, clusters, and beyond
    {2, 3, 2}, {3, 3, 7}, {2, 3, 8}, {5, 2, 49}, {3, 2, 64}, {2, 9, 16}, {7, 3, 100}, {2, 1, 1024}, {2, 1, 1030},
    {3, 2, 3000}, {2, 3, 2048}, {2, 2, 8192}, {1, 1, 8193}, {2, 1, 8192}, {2, 1, 20001}, {2, 3, 9000}, {3, 1, 65536}, {1, 2, 130000},
    // planes that are no multiple of a vector in samples that are, and many of them: shorter than what a block has across
    // of a row, longer, beyond what is mapped so for its shortness
    {64, 16, 49}, {33, 8, 300}, {32, 8, 301}, {17, 8, 1031}};
// clang-format on

std::vector<ChannelNormShape> batch_norm_shapes() {
  std::vector<ChannelNormShape> shapes;
  for (const auto& [batch, channels, plane] : kBatchNormShapes) {
    shapes.push_back({batch, channels, plane, false});
    if (plane > 1 && batch * channels * plane < kLarge) shapes.push_back({batch, channels, plane, true});
  }
  return shapes;
}

}  // namespace normext::test
