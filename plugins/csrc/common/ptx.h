// The instructions of NVIDIA GPUs that C++ has no words for: tensor cores, and copies past the registers.
//
// Everything here runs from SM 80 on. The tests replace this header by functions of the same names that run on a CPU.
#ifndef FASTERVIT_COMMON_PTX_H
#define FASTERVIT_COMMON_PTX_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace fastervit {

// D (16 x 8, fp32) += A (16 x 16, T) · B (16 x 8, T); T is __half or __nv_bfloat16. With g = lane / 4 and p = lane % 4,
//   a[0] row g     columns 2p, 2p+1      a[1] row g + 8, same columns      a[2], a[3] as those, columns + 8
//   b[0] rows 2p, 2p+1 of column g       b[1] as that, rows + 8
//   d[0], d[1] row g, columns 2p, 2p+1   d[2], d[3] as those, row g + 8
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_16x8x16<__half>(float (&d)[4], const std::uint32_t (&a)[4],
                                                    const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma_16x8x16<__nv_bfloat16>(float (&d)[4], const std::uint32_t (&a)[4],
                                                           const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane l gives the address (a multiple of 16) of row l % 8 of
// matrix l / 8. r[i] then holds of matrix i, with g and p as above, row g, columns 2p and 2p + 1; transposed, rows 2p and
// 2p + 1 of column g.
__device__ __forceinline__ void load_matrix_x4(std::uint32_t (&r)[4], const void* shared_row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_matrix_x4_transposed(std::uint32_t (&r)[4], const void* shared_row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// 2^x to 22 bits, results below the smallest normal number being 0. exp2f spends three more instructions on those.
__device__ __forceinline__ float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Starts a copy of 16 (or 8) bytes from global to shared memory, both addresses multiples of as much. It has arrived for
// the thread that started it after copy_async_wait, for others after a barrier that follows.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  static_assert(Bytes == 8 || Bytes == 16, "sizes that the operators copy");
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16) {  // .cg: past L1, which would not see the data again
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(address), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;\n" ::"r"(address), "l"(global) : "memory");
  }
}

// Closes the group of copies that this thread has started since the last call.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most `Pending` of this thread's groups are under way.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

}  // namespace fastervit

#endif  // FASTERVIT_COMMON_PTX_H
