// Included before every kernel: takes the place of plugins/csrc/common/ptx.h and launch.h, under the same names.
#define FASTERVIT_COMMON_PTX_H
#define FASTERVIT_COMMON_LAUNCH_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Compilers expand these without a word to the engine, but for sizes that are one load and store.
extern "C" {
extern inline __attribute__((always_inline, gnu_inline)) void* memcpy(void* to, const void* from,
                                                                      std::size_t size) noexcept {
  if (!__builtin_constant_p(size) || (size != 1 && size != 2 && size != 4 && size != 8)) {
    fastervit::emulator::check_copy(to, from, size);
  }
  return __builtin_memcpy(to, from, size);
}
extern inline __attribute__((always_inline, gnu_inline)) void* memset(void* to, int value, std::size_t size) noexcept {
  fastervit::emulator::check_copy(to, nullptr, size);
  return __builtin_memset(to, value, size);
}
}

namespace fastervit {

// ptx.h

template <typename T>
__forceinline__ void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
template <>
__forceinline__ void mma_16x8x16<__half>(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  emulator::Mma operand{d, a, b};
  emulator::converge(emulator::kMmaHalf, &operand);
}
template <>
__forceinline__ void mma_16x8x16<__nv_bfloat16>(float (&d)[4], const std::uint32_t (&a)[4],
                                                const std::uint32_t (&b)[2]) {
  emulator::Mma operand{d, a, b};
  emulator::converge(emulator::kMmaBfloat16, &operand);
}

__forceinline__ void load_matrix_x4(std::uint32_t (&r)[4], const void* shared_row) {
  emulator::LoadMatrix operand{r, shared_row};
  emulator::converge(emulator::kLoadMatrix, &operand);
}
__forceinline__ void load_matrix_x4_transposed(std::uint32_t (&r)[4], const void* shared_row) {
  emulator::LoadMatrix operand{r, shared_row};
  emulator::converge(emulator::kLoadMatrixTransposed, &operand);
}

inline float exp2_approximate(float x) { return exp2f(x); }

template <int Bytes>
__forceinline__ void copy_async(void* shared, const void* global) {
  static_assert(Bytes == 8 || Bytes == 16, "sizes that the operators copy");
  emulator::copy_async(shared, global, Bytes);
}
__forceinline__ void copy_async_commit() { emulator::copy_async_commit(); }
template <int Pending>
__forceinline__ void copy_async_wait() {
  emulator::copy_async_wait(Pending);
}

// launch.h

struct Device {
  int multiprocessors;
  int shared_memory_per_block;
  int shared_memory_per_multiprocessor;
};

inline int current_device(Device& device) {
  const emulator::Device is = emulator::device();
  device = {is.multiprocessors, is.shared_memory_per_block, is.shared_memory_per_multiprocessor};
  return 0;
}

template <typename Parameters>
int launch(void (*kernel)(Parameters), dim3 grid, int threads, int shared_bytes, void*, const Parameters& parameters) {
  static_assert(sizeof(Parameters) <= 4096, "all that a launch carries");
  const auto call = [](const void* kernel, const void* parameters) {
    reinterpret_cast<void (*)(Parameters)>(const_cast<void*>(kernel))(*static_cast<const Parameters*>(parameters));
  };
  return emulator::launch(
      {call, reinterpret_cast<const void*>(kernel), &parameters, {grid.x, grid.y, grid.z}, threads, shared_bytes});
}

__forceinline__ unsigned char* dynamic_shared() { return emulator::dynamic_shared(); }

}  // namespace fastervit
