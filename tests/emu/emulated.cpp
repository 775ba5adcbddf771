// emulated.cpp -- CUDA's kernels, emulated: every schedule, on a device with clusters and one without.
#include <random>
#include <set>

#include "backend.h"
#include "cuda/rows/row_launches.cuh"
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

// Without rings, and with room for the parameters of long rows: those go through kernels that newer GPUs have for what
// a ring has no room for.
const NamedDevice kOlder = {{.sm_count = 2, .max_shared_bytes = 163 << 10, .has_clusters = false}, "older"};

Setting make_setting(const Schedule& schedule, const NamedDevice& device, bool for_long_rows = false) {
  return {schedule.name + std::string(" schedule, ") + device.name,
          [&] {
            emu::options.order = schedule.order;
            emu::device = device.device;
          },
          for_long_rows};
}

}  // namespace

const bool kRoundsGradientOfSum = false;
const int64_t kLarge = 4000;

// Every op with clusters in one schedule and without in another, drawn for it. Long rows at random with clusters as
// well, and on an older device.
const std::vector<Setting>& settings(int64_t) {
  static const std::vector<std::vector<Setting>> choices = [] {
    std::vector<std::vector<Setting>> all;
    for (const Schedule& with : kSchedules) {
      for (const Schedule& without : kSchedules) {
        if (with.order == without.order) continue;
        all.push_back({make_setting(with, kDevices[0]), make_setting(without, kDevices[1]),
                       make_setting(kSchedules[2], kDevices[0], true), make_setting(kSchedules[2], kOlder, true)});
      }
    }
    return all;
  }();
  static std::minstd_rand draw;  // the same in every process
  return choices[(draw() >> 8) % choices.size()];
}

template <class Op>
void run(const Op& op) {
  run_emulated(op);
}
template void run(const RowNormForward&);
template void run(const RowNormBackward&);
template void run(const BatchNormForward&);
template void run(const BatchNormBackward&);
template void run(const BatchNormMerge&);
template void run(const BatchNormUpdate&);
template void run(const GroupNormForward&);
template void run(const GroupNormBackward&);

namespace {

// The columns of the longest rows of every entry of a table: whole vectors, or one column less, for rows that are not.
template <class T, const auto& kLaunches>
void add_longest(bool aligned, std::set<int64_t>& columns) {
  for (const cuda::RowLaunch& launch : kLaunches) columns.insert(launch.vectors * cuda::kVec<T> - (aligned ? 0 : 1));
}
template <class T, class Source, bool kAligned>
void add_longest(std::set<int64_t>& columns) {
  add_longest<T, cuda::forward_launches<T, Source, kAligned>()>(kAligned, columns);
  add_longest<T, cuda::backward_launches<T, Source, kAligned>()>(kAligned, columns);
}

// The longest rows of a table's entries are for the dtypes of that table.
template <class T>
void add_longest(std::vector<RowNormShape>& shapes) {
  std::set<int64_t> columns;
  add_longest<T, cuda::InputRows<T>, true>(columns);
  add_longest<T, cuda::InputRows<T>, false>(columns);
  for (const int64_t c : columns) {
    if (c <= 128) shapes.push_back({33, c, true, sizeof(T)});  // several to a block
    shapes.push_back({c < 2048 ? 3 : c <= 16384 ? 2 : 1, c, true, sizeof(T)});
  }
}

}  // namespace

std::vector<RowNormShape> row_norm_shapes() {
  std::vector<RowNormShape> shapes;
  for (const int64_t columns : {1, 2, 7, 8, 9}) {  // less than a vector, and more
    for (const int64_t rows : {3, 33}) shapes.push_back({rows, columns});
  }
  add_longest<double>(shapes);
  add_longest<float>(shapes);
  add_longest<__half>(shapes);
  // Rows that fit nowhere, or into the rings of a cluster alone.
  shapes.push_back({1, 40000});
  for (const int64_t c : {32769, 65536, 65608, 131073}) shapes.push_back({1, c, false});
  // Blocks that go round several times, and more partial sums than are added up at once.
  // Two rows to a block, no row fetched ahead, rows of any alignment.
  shapes.insert(shapes.end(), {{200, 24}, {4000, 8}, {40, 300}, {5, 9000}, {41, 1536}, {7, 16384, false}, {61, 1031}});
  // More rows than all stages of a ring hold: the others are drawn. And more than are added up in one register.
  shapes.insert(shapes.end(), {{17, 9000, false}, {257, 3416, false, sizeof(float)}});
  // In parts, of which the last is shorter, and more rows than two clusters have stages.
  shapes.insert(shapes.end(), {{23, 28808, true, sizeof(__half)}, {23, 14404, true, sizeof(float)}});
  return shapes;
}

// Input + residual has kernels for aligned rows alone.
std::vector<int64_t> columns_of_sums(DType data, DType sum) {
  std::set<int64_t> columns;
  if (data == DType::float64)
    add_longest<double, cuda::SumRows<double>, true>(columns);
  else if (data == DType::float32)
    add_longest<float, cuda::SumRows<float>, true>(columns);
  else if (sum == DType::float32)
    add_longest<__half, cuda::SumRows<float>, true>(columns);
  else
    add_longest<__half, cuda::SumRows<__half>, true>(columns);
  return {columns.begin(), columns.end()};
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

// Every entry of csrc/cuda/channels/group_launches.cuh for every dtype, forward and backward, which keeps two
// arrays; what fits nowhere; columns by vectors and one by one. Those of a kind stand together, and get their kinds of
// norm in turn. test_kernels.py sees to it that no kernel is left out.
std::vector<GroupNormShape> group_norm_shapes() {
  return {// planes by vectors: a warp a group, 128 threads, 256, clusters of 2 to 8 of them, of 512
          {{9, 16, 16, false}, 4},
          {{2, 4, 704, false}, 2},
          {{1, 2, 1536, false}, 2},
          {{1, 2, 4096, false}, 1},
          {{1, 2, 9000, false}, 1},
          {{1, 2, 25000, false}, 1},
          {{1, 2, 80000, false}, 1},
          {{1, 1, 310000, false}, 1},
          // planes element by element: a warp, 256 threads, clusters; [N, C]
          {{3, 2, 1, false}, 2},
          {{2, 6, 7, false}, 3},
          {{1, 2, 1031, false}, 1},
          {{1, 2, 9001, false}, 1},
          {{1, 1, 20003, false}, 1},
          {{1, 1, 70001, false}, 1},
          // columns by vectors: one pixel a row and several, more than a block has across
          {{9, 16, 16, true}, 16},
          {{2, 5, 40, true}, 1},
          {{3, 24, 40, true}, 3},
          {{2, 264, 9, true}, 8},
          // columns one by one
          {{2, 6, 7, true}, 3},
          {{3, 5, 41, true}, 5},
          {{1, 17, 25, true}, 17},
          {{3, 7, 13, true}, 1},
          // 128 threads for one array and for two of them, of any dtype
          {{2, 4, 200, false}, 2},
          {{2, 4, 200, false}, 4},
          // clusters of two and of four, for one array and for two, of any dtype
          {{1, 2, 1536, false}, 1},
          {{1, 2, 6000, false}, 1}};
}

}  // namespace normext::test
