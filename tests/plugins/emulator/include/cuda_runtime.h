// What kernels use of the CUDA runtime, on a CPU: types, built-in variables, intrinsics.
#ifndef FASTERVIT_EMULATOR_CUDA_RUNTIME_H
#define FASTERVIT_EMULATOR_CUDA_RUNTIME_H

#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
// One block runs at a time, so that one copy per program will do; the linker gathers them for the engine (shared.ld). A
// section cannot hold variables of templates and of other functions, hence one per line.
#define FASTERVIT_TEXT_OF(x) #x
#define FASTERVIT_TEXT(x) FASTERVIT_TEXT_OF(x)
#define __shared__ static __attribute__((section("fastervit_shared." FASTERVIT_TEXT(__LINE__))))

#define FASTERVIT_VECTORS(Name, Type)                                         \
  struct alignas(2 * sizeof(Type)) Name##2 { Type x, y; };                    \
  struct Name##3 { Type x, y, z; };                                           \
  struct alignas(4 * sizeof(Type)) Name##4 { Type x, y, z, w; };              \
  inline Name##2 make_##Name##2(Type x, Type y) { return {x, y}; }            \
  inline Name##3 make_##Name##3(Type x, Type y, Type z) { return {x, y, z}; } \
  inline Name##4 make_##Name##4(Type x, Type y, Type z, Type w) { return {x, y, z, w}; }
FASTERVIT_VECTORS(char, signed char)
FASTERVIT_VECTORS(uchar, unsigned char)
FASTERVIT_VECTORS(short, short)
FASTERVIT_VECTORS(ushort, unsigned short)
FASTERVIT_VECTORS(int, int)
FASTERVIT_VECTORS(uint, unsigned)
FASTERVIT_VECTORS(float, float)
#undef FASTERVIT_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Constant to the thread that reads them; the engine sets them whenever it changes threads.
extern "C" const uint3 threadIdx, blockIdx;
extern "C" const dim3 blockDim, gridDim;
constexpr int warpSize = 32;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
using cudaStream_t = struct CUstream_st*;

__forceinline__ void __syncthreads() { fastervit::emulator::barrier(); }

__forceinline__ void __syncwarp(unsigned mask = UINT_MAX) {
  fastervit::emulator::converge(fastervit::emulator::kSyncWarp, nullptr, mask);
}

namespace fastervit::emulator {

// `value` of lane `source` of the caller's group of `width` lanes.
template <typename T>
__forceinline__ T shuffle(unsigned mask, T value, int source, bool keeps_own = false) {
  static_assert(sizeof(T) <= 8, "a register or two");
  Shuffle operand{0, keeps_own ? static_cast<int>(threadIdx.x % 32) : source};
  __builtin_memcpy(&operand.value, &value, sizeof(T));
  converge(kShuffle, &operand, mask);
  __builtin_memcpy(&value, &operand.value, sizeof(T));
  return value;
}

}  // namespace fastervit::emulator

template <typename T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int group = static_cast<int>(threadIdx.x % 32) & -width;
  return fastervit::emulator::shuffle(mask, value, group + (source & (width - 1)));
}
template <typename T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return fastervit::emulator::shuffle(mask, value, lane ^ lanes, (lane ^ lanes) >= (lane & -width) + width);
}
template <typename T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  const int lane = static_cast<int>(threadIdx.x % 32), source = lane + static_cast<int>(lanes);
  return fastervit::emulator::shuffle(mask, value, source, source >= (lane & -width) + width);
}
template <typename T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  const int lane = static_cast<int>(threadIdx.x % 32), source = lane - static_cast<int>(lanes);
  return fastervit::emulator::shuffle(mask, value, source, source < (lane & -width));
}
__forceinline__ unsigned __ballot_sync(unsigned mask, bool vote) {
  std::uint64_t operand = vote;
  fastervit::emulator::converge(fastervit::emulator::kBallot, &operand, mask);
  return static_cast<unsigned>(operand);
}
__forceinline__ bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
__forceinline__ bool __all_sync(unsigned mask, bool vote) { return __ballot_sync(mask, !vote) == 0; }

template <typename T>
__forceinline__ T __ldg(const T* address) {
  return *address;
}

// Approximations of the GPU's are exact here.
__forceinline__ float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
__forceinline__ float __expf(float x) { return std::exp(x); }
__forceinline__ float __logf(float x) { return std::log(x); }
__forceinline__ float __fdividef(float x, float y) { return x / y; }
__forceinline__ float __frcp_rn(float x) { return 1.0f / x; }
__forceinline__ float __fsqrt_rn(float x) { return std::sqrt(x); }
__forceinline__ float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
__forceinline__ float __fadd_rn(float x, float y) { return x + y; }
__forceinline__ float __fmul_rn(float x, float y) { return x * y; }
__forceinline__ float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// To the nearest (even) integer; out of range the nearest that there is, 0 for NaN.
__forceinline__ int __float2int_rn(float x) {
  if (std::isnan(x)) return 0;
  return x >= 0x1p31f ? INT_MAX : x < -0x1p31f ? INT_MIN : static_cast<int>(std::nearbyint(x));
}
__forceinline__ float __int2float_rn(int x) { return static_cast<float>(x); }

#define FASTERVIT_BITS(name, To, From)        \
  __forceinline__ To name(From x) {           \
    To bits;                                  \
    __builtin_memcpy(&bits, &x, sizeof bits); \
    return bits;                              \
  }
FASTERVIT_BITS(__float_as_int, int, float)
FASTERVIT_BITS(__float_as_uint, unsigned, float)
FASTERVIT_BITS(__int_as_float, float, int)
FASTERVIT_BITS(__uint_as_float, float, unsigned)
#undef FASTERVIT_BITS

__forceinline__ int __popc(unsigned x) { return __builtin_popcount(x); }
__forceinline__ int __ffs(int x) { return __builtin_ffs(x); }
__forceinline__ int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

#define FASTERVIT_MIN_MAX(Type)                                       \
  constexpr inline Type min(Type a, Type b) { return b < a ? b : a; } \
  constexpr inline Type max(Type a, Type b) { return a < b ? b : a; }
FASTERVIT_MIN_MAX(int)
FASTERVIT_MIN_MAX(unsigned)
FASTERVIT_MIN_MAX(long)
FASTERVIT_MIN_MAX(unsigned long)
FASTERVIT_MIN_MAX(long long)
FASTERVIT_MIN_MAX(unsigned long long)
#undef FASTERVIT_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

#endif  // FASTERVIT_EMULATOR_CUDA_RUNTIME_H
