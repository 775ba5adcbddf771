// run.h -- the door to the CUDA kernels, for callers that know neither torch nor CUDA's headers.
//
// Each op is one or a few kernels on `stream`, all launched before run() returns, none of them waited for. Between them
// they need scratch memory on the device, which the caller allocates: nothing here allocates, synchronizes or reads a
// result, so a CUDA graph captures it.
#pragma once
#include <cstdint>

struct CUstream_st;  // cudaStream_t points to it

namespace normext {

struct RowNormForward;
struct RowNormBackward;
struct BatchNormForward;
struct BatchNormBackward;
struct BatchNormMerge;
struct BatchNormUpdate;
struct GroupNormForward;
struct GroupNormBackward;

namespace cuda {

using Stream = CUstream_st*;

// Bytes of scratch memory that run() needs for this op on the current device; may be 0. Aligned to 16 bytes.
template <class Op>
int64_t workspace_bytes(const Op& op);

// Launches the op on the current device. Returns nullptr, or what CUDA says is wrong.
template <class Op>
const char* run(const Op& op, void* workspace, Stream stream);

}  // namespace cuda
}  // namespace normext
