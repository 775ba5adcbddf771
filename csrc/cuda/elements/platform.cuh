// platform.cuh -- the only file that knows whether nvcc or the emulator (tests/emu) compiles the kernels.
//
// Kernels use CUDA's own names for threads, warps and barriers, and from here: SHARED_ARRAY and DYNAMIC_SHARED,
// launch(), device(), follow(), the cluster_ functions, and transfers with the barriers that count their bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulator.h"
#endif

namespace normext::cuda {

// A grid of blocks of threads; blocks come in clusters of so many, which run together and see each other's shared
// memory (sm_90 and later).
struct Launch {
  dim3 grid, block;
  cudaStream_t stream = nullptr;
  size_t shared_bytes = 0;  // of DYNAMIC_SHARED
  unsigned cluster = 1;
  bool follows = false;  // the kernel before on this stream is of the same op: see follow()
  bool alone = false;    // but what it has written may be read by __ldg: not before it is through
};

// What a launch configuration may depend on.
struct Device {
  int sm_count;
  int max_shared_bytes;  // of one block, static and dynamic together
  bool has_clusters;     // and transfers
  int clusters[4];       // of 1, 2, 4 and 8 blocks with an SM each, at once: some SMs may be left over
};

// In shared memory: counts the arrivals and the bytes of a phase, and begins the next one when all of them have come.
using TransferBarrier = uint64_t;

}  // namespace normext::cuda

#ifdef __CUDACC__

// Not initialized. `size` is a constant.
#define SHARED_ARRAY(type, name, size) __shared__ type name[size]
// As many bytes as Launch::shared_bytes says, aligned to 16; one in a kernel.
#define DYNAMIC_SHARED(type, name)                         \
  extern __shared__ __align__(16) unsigned char name##_[]; \
  type* const name = reinterpret_cast<type*>(name##_)

namespace normext::cuda {

static __global__ void probe_kernel() {}

inline cudaLaunchAttribute cluster_attribute(unsigned blocks) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = blocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

// How many clusters run at once, of blocks that have the shared memory of an SM to themselves; none where it cannot be
// asked.
inline int count_clusters(unsigned blocks, int shared_bytes) {
  cudaLaunchAttribute attribute = cluster_attribute(blocks);
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = 32;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  cudaFuncSetAttribute(probe_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (cudaOccupancyMaxActiveClusters(&count, probe_kernel, &config) == cudaSuccess) return count;
  cudaGetLastError();  // it is no launch's
  return 0;
}

inline Device query_device(int index) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    cudaDeviceGetAttribute(&value, which, index);
    return value;
  };
  // What counts is the architecture that the code is compiled for: PTX of an older one runs on a GPU with clusters too.
  cudaFuncAttributes code{};
  cudaFuncGetAttributes(&code, probe_kernel);
  Device found{attribute(cudaDevAttrMultiProcessorCount),
               attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
               code.ptxVersion >= 90,
               {}};
  found.clusters[0] = found.sm_count;
  for (int i = 1; found.has_clusters && i < 4; ++i) found.clusters[i] = count_clusters(1u << i, found.max_shared_bytes);
  return found;
}

// The current device. What is known of the first few is kept, by every thread for itself: so it needs no lock.
inline Device device() {
  constexpr int kMost = 16;
  thread_local Device known[kMost];  // zeros
  int index = 0;
  cudaGetDevice(&index);
  if (index >= kMost) return query_device(index);
  if (known[index].sm_count == 0) known[index] = query_device(index);
  return known[index];
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Launch& how, const Arguments&... arguments) {
  if (how.shared_bytes > (32 << 10)) {  // more than 48 KiB in all wants permission: for the same amount at every call
    cudaFuncAttributes code{};
    cudaFuncGetAttributes(&code, kernel);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         device().max_shared_bytes - static_cast<int>(code.sharedSizeBytes));
  }
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (how.cluster > 1) attributes[count++] = cluster_attribute(how.cluster);
  if (how.follows && !how.alone && device().has_clusters) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  return cudaGetLastError();  // of all the calls; what is reported here is not reported to whoever comes next
}

// From sm_100 on, nvcc computes with pairs of float32 values, and takes more registers for it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool kComputesInPairs = true;
#else
constexpr bool kComputesInPairs = false;
#endif

// Makes the compiler forget where a value came from. Packed words it then widens where they are used, again if need be,
// instead of keeping the wide values from early on; of a row's number, it computes addresses anew instead of keeping a
// pointer for each array. Registers are what that saves.
__device__ inline void opaque(int64_t& value) { asm volatile("" : "+l"(value)); }
__device__ inline void opaque(unsigned (&words)[4]) {
  asm volatile("" : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3]));
}

// What every kernel begins with that may come behind another of its op. Those are launched before those in front of
// them are through, to save the time a launch takes: as soon as all blocks of the one before have come here. What it
// has written is there after this.
__device__ inline void follow() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Stores 16 bytes with one instruction, to an address aligned to them: from an assignment, nvcc makes four at times.
__device__ inline void store16(void* global, uint4 bits) { __stwb(static_cast<uint4*>(global), bits); }
__device__ inline void store16_shared(void* shared, uint4 bits) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(shared)), "r"(bits.x), "r"(bits.y),
               "r"(bits.z), "r"(bits.w)
               : "memory");
}

// Copies 16 bytes, both aligned, without waiting for them: they are there after await_copies(), for the thread that has
// copied them, and after a barrier for all.
__device__ inline void copy16_to_shared(void* shared, const void* global) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global))
               : "memory");
#else
  *static_cast<uint4*>(shared) = __ldg(static_cast<const uint4*>(global));
#endif
}
__device__ inline void await_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Takes the next number. Who gets which is left to chance: no result may depend on it.
__device__ inline unsigned take_next(unsigned* counter) {
  unsigned taken;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;"
               : "=r"(taken)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return taken;
}

// Clusters. Code that calls these is compiled for every architecture, and launched only where device().has_clusters.
// What cooperative_groups.h calls as well: that header takes nvcc longer than all others together.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ inline void cluster_arrive() { __cluster_barrier_arrive(); }
__device__ inline void cluster_wait() { __cluster_barrier_wait(); }
__device__ inline unsigned cluster_rank() { return __clusterRelativeBlockRank(); }
__device__ inline unsigned cluster_size() { return __clusterSizeInBlocks(); }
// The same shared variable in block `rank` of the cluster.
template <class T>
__device__ const T* cluster_peer(const T* shared, unsigned rank) {
  return static_cast<const T*>(__cluster_map_shared_rank(shared, rank));
}

// Transfers move without a thread's waiting for them, from where they are asked for to the phase of a barrier.
__device__ inline void barrier_init(TransferBarrier* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// To stand between what threads write to shared memory, barriers above all, and the transfers that are to find it.
__device__ inline void fence_transfers() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void barrier_arrive(TransferBarrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and has the phase wait for so many bytes as well. To be told before they are asked for.
__device__ inline void barrier_arrive_expecting(TransferBarrier* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// For the end of the phase of this parity: zero, then one, in turn. Every thread waits for every phase.
__device__ inline void barrier_wait(TransferBarrier* barrier, unsigned parity) {
  unsigned done = 0;
  while (!done) {
    asm volatile(
        "{\n.reg .pred done;\nmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}
// Bytes of global memory, a multiple of 16 as both addresses are.
__device__ inline void bulk_copy(void* shared, const void* global, unsigned bytes, TransferBarrier* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
// 16 bytes to the same place in the shared memory of block `rank` of the cluster, for the barrier at the same place
// there. Whoever waits for them does so as for a copy: a wait that acquires for the cluster would empty the L1 cache,
// which they do not come through.
__device__ inline void send16(void* shared, uint4 bits, TransferBarrier* barrier, unsigned rank) {
  asm volatile(
      "{\n.reg .b32 to, at;\nmapa.shared::cluster.u32 to, %0, %6;\nmapa.shared::cluster.u32 at, %5, %6;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [to], {%1, %2, %3, %4}, [at];\n}" ::"r"(
          shared_address(shared)),
      "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
}
#else
__device__ inline void cluster_arrive() {}
__device__ inline void cluster_wait() {}
__device__ inline unsigned cluster_rank() { return 0; }
__device__ inline unsigned cluster_size() { return 1; }
template <class T>
__device__ const T* cluster_peer(const T* shared, unsigned) {
  return shared;
}
__device__ inline void barrier_init(TransferBarrier*, unsigned) {}
__device__ inline void fence_transfers() {}
__device__ inline void barrier_arrive(TransferBarrier*) {}
__device__ inline void barrier_arrive_expecting(TransferBarrier*, unsigned) {}
__device__ inline void barrier_wait(TransferBarrier*, unsigned) {}
__device__ inline void bulk_copy(void*, const void*, unsigned, TransferBarrier*) {}
__device__ inline void send16(void*, uint4, TransferBarrier*, unsigned) {}
#endif

}  // namespace normext::cuda

#else

#define SHARED_ARRAY(type, name, size) \
  static const char name##_key = 0;    \
  type* const name = static_cast<type*>(emu::shared_array(&name##_key, sizeof(type) * (size)))
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(emu::dynamic_shared())

namespace normext::cuda {

inline Device device() {
  const int sms = emu::device.sm_count, clusters = emu::device.clusters;
  return {sms, emu::device.max_shared_bytes, emu::device.has_clusters, {sms, clusters, clusters, clusters}};
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Launch& how, const Arguments&... arguments) {
  emu::launch([=] { kernel(static_cast<Parameters>(arguments)...); }, how.grid, how.block, how.shared_bytes,
              how.cluster);
  return cudaSuccess;
}

constexpr bool kComputesInPairs = false;

inline void follow() {}

inline void opaque(int64_t&) {}
inline void opaque(unsigned (&)[4]) {}

inline void store16(void* global, uint4 bits) { *static_cast<uint4*>(global) = bits; }
inline void store16_shared(void* shared, uint4 bits) { *static_cast<uint4*>(shared) = bits; }
inline void copy16_to_shared(void* shared, const void* global) { memcpy(shared, global, 16); }
inline void await_copies() {}
inline unsigned take_next(unsigned* counter) { return (*counter)++; }

inline void cluster_arrive(EMU_WHERE) { emu::cluster_arrive({file, line}); }
inline void cluster_wait(EMU_WHERE) { emu::cluster_wait({file, line}); }
inline unsigned cluster_rank() { return emu::cluster_rank(); }
inline unsigned cluster_size() { return emu::cluster_size(); }
template <class T>
const T* cluster_peer(const T* shared, unsigned rank) {
  return emu::cluster_peer(shared, rank);
}

inline void barrier_init(TransferBarrier* barrier, unsigned arrivals, EMU_WHERE) {
  emu::barrier_init(barrier, arrivals, {file, line});
}
inline void fence_transfers() { emu::fence(); }
inline void barrier_arrive(TransferBarrier* barrier, EMU_WHERE) { emu::arrive_expecting(barrier, 0, {file, line}); }
inline void barrier_arrive_expecting(TransferBarrier* barrier, unsigned bytes, EMU_WHERE) {
  emu::arrive_expecting(barrier, bytes, {file, line});
}
inline void barrier_wait(TransferBarrier* barrier, unsigned parity, EMU_WHERE) {
  emu::await(barrier, parity, {file, line});
}
inline void bulk_copy(void* shared, const void* global, unsigned bytes, TransferBarrier* barrier, EMU_WHERE) {
  emu::bulk_copy(shared, global, bytes, barrier, {file, line});
}
inline void send16(void* shared, uint4 bits, TransferBarrier* barrier, unsigned rank, EMU_WHERE) {
  emu::send(shared, &bits, sizeof(bits), barrier, rank, {file, line});
}

}  // namespace normext::cuda

#endif
