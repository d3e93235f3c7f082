// Element types: conversion to and from fp32, in which all operators add and reduce.
#ifndef FASTERVIT_COMMON_NUMERIC_H
#define FASTERVIT_COMMON_NUMERIC_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

namespace fastervit {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Two 16-bit elements in one register, the first in the low half, as tensor cores want them.
template <typename T>
__device__ __forceinline__ std::uint32_t pack2(float first, float second) {
  const T pair[2] = {from_float<T>(first), from_float<T>(second)};
  std::uint32_t bits;
  memcpy(&bits, pair, sizeof bits);
  return bits;
}

template <typename T>
__device__ __forceinline__ float2 unpack2(std::uint32_t bits) {
  T pair[2];
  memcpy(pair, &bits, sizeof bits);
  return make_float2(to_float(pair[0]), to_float(pair[1]));
}

// As many elements as one 16-byte access holds.
template <typename T>
struct alignas(16) Vector {
  static constexpr int size = 16 / sizeof(T);
  T x[size];
};

}  // namespace fastervit

#endif  // FASTERVIT_COMMON_NUMERIC_H
