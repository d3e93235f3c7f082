// bfloat16: conversions, rounded to nearest even.
#ifndef FASTERVIT_EMULATOR_CUDA_BF16_H
#define FASTERVIT_EMULATOR_CUDA_BF16_H

#include <cuda_runtime.h>

struct __nv_bfloat16 {
  unsigned short bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

__forceinline__ float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(unsigned{x.bits} << 16); }

__forceinline__ __nv_bfloat16 __float2bfloat16_rn(float x) {
  const unsigned bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // the one NaN that GPUs write
  return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
__forceinline__ __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }

__forceinline__ __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
__forceinline__ __nv_bfloat162 __float22bfloat162_rn(float2 x) { return __floats2bfloat162_rn(x.x, x.y); }
__forceinline__ float2 __bfloat1622float2(__nv_bfloat162 x) {
  return make_float2(__bfloat162float(x.x), __bfloat162float(x.y));
}

#endif  // FASTERVIT_EMULATOR_CUDA_BF16_H
