// IEEE half precision: conversions, rounded to nearest even.
#ifndef FASTERVIT_EMULATOR_CUDA_FP16_H
#define FASTERVIT_EMULATOR_CUDA_FP16_H

#include <cuda_runtime.h>

struct __half {
  unsigned short bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

__forceinline__ float __half2float(__half h) {
  const unsigned magnitude = (h.bits & 0x7fffu) << 13;
  // The exponent is 112 too small, also of subnormals; all ones mean infinity and NaN.
  const unsigned bits =
      magnitude < 0x7c00u << 13 ? __float_as_uint(__uint_as_float(magnitude) * 0x1p112f) : magnitude | 0x7f800000u;
  return __uint_as_float(bits | (h.bits & 0x8000u) << 16);
}

__forceinline__ __half __float2half_rn(float x) {
  const unsigned sign = __float_as_uint(x) >> 16 & 0x8000u, magnitude = __float_as_uint(x) & 0x7fffffffu;
  unsigned bits;
  if (magnitude > 0x7f800000u) {
    return {0x7fff};                      // the one NaN that GPUs write
  } else if (magnitude >= 0x47800000u) {  // 2^16
    bits = 0x7c00;
  } else if (magnitude < 0x38800000u) {  // 2^-14: the sum's last place is that of subnormals
    bits = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - __float_as_uint(0.5f);
  } else {  // halves below the last place, and one more where that is odd, carry into it
    bits = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return {static_cast<unsigned short>(bits | sign)};
}
__forceinline__ __half __float2half(float x) { return __float2half_rn(x); }

__forceinline__ __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
__forceinline__ __half2 __float22half2_rn(float2 x) { return __floats2half2_rn(x.x, x.y); }
__forceinline__ float2 __half22float2(__half2 x) { return make_float2(__half2float(x.x), __half2float(x.y)); }

#endif  // FASTERVIT_EMULATOR_CUDA_FP16_H
