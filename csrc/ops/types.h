// types.h -- what every op's interface shares. No torch header: see the layers in README.md.
#pragma once
#include <cstdint>

namespace normext {

enum class DType : uint8_t { float64, float32, bfloat16, float16 };

}  // namespace normext
