// Kernels that do one thing right or, in another mode, wrong: what test_emulator.py shows the emulator.
#include <cstdint>

#include "../../../plugins/csrc/common/launch.h"
#include "../../../plugins/csrc/common/numeric.h"
#include "../../../plugins/csrc/common/ptx.h"
#include "../../../plugins/csrc/common/types.h"

namespace fastervit {
namespace {

struct Pixels {
  float x[7];
};

struct Call {
  float* out;
  const void* in;
  int mode;
};

// out (16, 8) = a (16, 16) · b (8, 16)ᵀ by one warp; in: a, b.
template <typename T>
__global__ void matmul(Call call) {
  T* shared = reinterpret_cast<T*>(dynamic_shared());
  const int lane = threadIdx.x;
  for (int i = lane; i < 48; i += 32) copy_async<16>(shared + 8 * i, static_cast<const T*>(call.in) + 8 * i);
  copy_async_commit();
  copy_async_wait<0>();
  __syncwarp();
  std::uint32_t a[4], b[4];
  load_matrix_x4(a, shared + lane % 16 * 16 + lane / 16 * 8);
  load_matrix_x4(b, shared + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
  float d[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  mma_16x8x16<T>(d, a, {b[0], b[1]});
  for (int i = 0; i < 4; ++i) call.out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// Four 8 x 8 matrices of in, one under the other: out[lane][matrix][half] is what the lane's registers then hold.
__global__ void matrices(Call call) {
  std::uint16_t* shared = reinterpret_cast<std::uint16_t*>(dynamic_shared());
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) {
    if (call.mode != 5 || lane != 9) shared[lane * 8 + i] = static_cast<const std::uint16_t*>(call.in)[lane * 8 + i];
  }
  if (call.mode != 6) __syncwarp();
  std::uint32_t r[4];
  if (call.mode == 0 || call.mode == 5) load_matrix_x4(r, shared + lane * 8);
  if (call.mode == 1) load_matrix_x4_transposed(r, shared + lane * 8);
  if (call.mode == 2) load_matrix_x4(r, shared + lane * 8 + 4);
  if (call.mode == 3) load_matrix_x4(r, shared + lane * 8 + 8);
  if (call.mode == 4) load_matrix_x4(r, static_cast<const std::uint16_t*>(call.in) + lane * 8);
  if (call.mode == 6) load_matrix_x4(r, shared + (31 - lane) * 8);
  for (int i = 0; i < 8; ++i) call.out[lane * 8 + i] = static_cast<float>(r[i / 2] >> i % 2 * 16 & 0xffff);
}

// out = in, 16 bytes per thread, two copies each.
__global__ void copies(Call call) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  const int thread = threadIdx.x, size = 4 * static_cast<int>(blockDim.x);
  for (int i = thread; i < 2 * size; i += blockDim.x) shared[i] = 0.0f;
  __syncthreads();
  const float* in = static_cast<const float*>(call.in);
  copy_async<16>(shared + 4 * thread, in + 4 * thread + (call.mode == 4 ? 1 : 0));
  copy_async_commit();
  const float* nowhere = reinterpret_cast<const float*>(static_cast<std::uintptr_t>(size));
  copy_async<8>(shared + size + 4 * thread, call.mode == 8 ? nowhere : in + size + 4 * thread);  // mark: from nowhere
  copy_async<8>(shared + size + 4 * thread + 2, in + size + 4 * thread + (call.mode == 5 ? 4 * size : 2));
  if (call.mode != 3) copy_async_commit();
  if (call.mode == 1) {
    copy_async_wait<1>();
    call.out[4 * thread] = shared[4 * thread];  // the first group is there
  } else if (call.mode != 2) {
    copy_async_wait<0>();
  }
  const int from = call.mode == 6 ? (thread + 1) % blockDim.x : thread;
  for (int i = 0; i < 4; ++i) call.out[4 * thread + i] = shared[4 * from + i];
  for (int i = 0; i < 4; ++i) call.out[size + 4 * thread + i] = shared[size + 4 * from + i];  // mark: too early
  if (call.mode == 7) copy_async<8>(shared, in);
  if (call.mode == 9) copy_async<8>(call.out, in);
}

// A buffer is filled again, by copies that the next round waits for, while others still read it.
__global__ void pipeline(Call call) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  const int thread = threadIdx.x, threads = blockDim.x;
  const float* in = static_cast<const float*>(call.in);
  copy_async<16>(shared + 4 * thread, in + 4 * thread);
  copy_async_commit();
  float sum = 0.0f;
  for (int round = 0; round < 3; ++round) {
    copy_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4 * threads; ++i) sum += shared[i];
    if (call.mode == 0) __syncthreads();
    copy_async<16>(shared + 4 * thread, in + 4 * thread);  // mark: again
    copy_async_commit();
  }
  copy_async_wait<0>();
  call.out[thread] = sum;
}

// Each thread hands a number to the one opposite it: in its warp, or in the other warp of two.
__global__ void neighbours(Call call) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  __shared__ float fixed[64];
  const int thread = threadIdx.x;
  const bool within_warp = call.mode >= 10;
  const int other = within_warp ? thread ^ 31 : thread ^ 63;
  if (call.mode % 10 == 7) shared = fixed;
  shared[thread] = 0.0f;
  __syncthreads();
  if (call.mode % 10 == 5) call.out[thread] = shared[other];
  shared[thread] = static_cast<float>(thread);  // mark: write
  switch (call.mode % 10) {
    case 0: __syncthreads(); break;
    case 1: __syncwarp(); break;
    case 2: __shfl_sync(0xffffffffu, thread, 0); break;
    case 3: break;
    case 4: shared[other] = static_cast<float>(thread); return;
    case 5: return;
    case 6: memset(&shared[other], 0, sizeof(float)); return;
    case 7: break;
    case 8: call.out[thread] = reinterpret_cast<const float2*>(shared)[other / 2].x; return;
    case 9: memcpy(&call.out[thread], &shared[other], sizeof(float)); return;
  }
  call.out[thread] = shared[other];  // mark: read
}

// Some threads read, by `mode`, what the first thread of a warp then overwrites; a __syncwarp or a shuffle in between.
__global__ void readers(Call call) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  const int thread = threadIdx.x, writer = call.mode == 4 ? 32 : 0;
  if (thread == 0) shared[0] = 1.0f;
  __syncthreads();
  bool reads = false;
  switch (call.mode) {
    case 0: reads = thread < 32; break;
    case 1: reads = thread % 32 == 0; break;
    case 2: reads = thread == 0 || thread == 40; break;
    case 3: reads = thread < 2; break;
    case 4: reads = thread == 0 || thread >= 32; break;
  }
  if (reads) call.out[thread] = shared[0];
  if (call.mode != 3) __syncwarp();
  if (call.mode == 3) __shfl_sync(0xffffffffu, thread, 0);
  if (thread == writer) shared[0] = 2.0f;
}

__global__ void uninitialised(Call call) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  const float* constant = shared;
  const int thread = threadIdx.x;
  if (thread < 31 || call.mode == 0) shared[thread] = 1.0f;
  __syncthreads();
  call.out[thread] = constant[thread];  // mark: never written
}

__global__ void diverge(Call call) {
  const int thread = threadIdx.x, lane = thread % 32;
  float d[4] = {}, value = static_cast<float>(thread);
  const std::uint32_t a[4] = {}, b[2] = {};
  switch (call.mode) {
    case 0: mma_16x8x16<__half>(d, a, b); break;
    case 1:
      if (lane < 16)
        value = __shfl_sync(0xffffffffu, value, 0);  // mark: some
      else
        __syncwarp();
      break;
    case 2:
      if (lane == 7) return;
      __syncthreads();
      break;
    case 3:
      if (thread < 32) return;
      __syncthreads();
      break;
    case 4:
      for (int i = 0; i < 3 + (lane == 9); ++i) mma_16x8x16<__half>(d, a, b);
      break;
    case 5:
      if (lane < 16) value = __shfl_sync(0xffffu, value, 0);
      break;
    case 6: value = __shfl_sync(0xffffffffu, value, 31); break;
    case 9: value = __shfl_sync(0xffffu << (lane & 16), value, lane ^ 1); break;
    case 7:
      if (thread >= 32)
        __syncthreads();
      else
        __syncwarp();
      break;
    case 8:
      if (lane % 2 == 0)
        mma_16x8x16<__half>(d, a, b);
      else
        mma_16x8x16<__nv_bfloat16>(d, a, b);
      break;
  }
  call.out[thread] = value + d[0];
}

// More than the stack that the emulator gives a thread.
__device__ __noinline__ float too_much(int i) {
  volatile float local[1 << 18];
  local[i] = 1.0f;
  return local[i];
}

// One thread accesses in and out, shared memory of 64 bytes or its own stack at the edge, or beyond it.
__global__ void edges(Call call) {
  unsigned char* shared = dynamic_shared();
  const int i = static_cast<int>(blockDim.x) + 15;  // 16, which the compiler does not know
  const float* in = static_cast<const float*>(call.in);
  float local[16] = {};
  volatile float sink;
  switch (call.mode) {
    case 0: {
      reinterpret_cast<float*>(shared)[i - 1] = in[i - 1];
      call.out[i - 1] = reinterpret_cast<float*>(shared)[i - 1];
      break;
    }
    case 1: sink = in[i]; break;
    case 2: sink = in[-1]; break;
    case 3: call.out[i] = 1.0f; break;
    case 4: call.out[-1] = 1.0f; break;
    case 5: shared[4 * i] = 1; break;
    case 6: shared[-1] = 1; break;
    case 7: *reinterpret_cast<uint2*>(shared + 4 * i - 4) = make_uint2(0, 0); break;
    case 8: *reinterpret_cast<uint4*>(shared + i - 8) = make_uint4(0, 0, 0, 0); break;
    case 9: local[i] = in[0]; break;
    case 10: sink = *reinterpret_cast<const float*>(static_cast<std::uintptr_t>(i)); break;  // mark: nowhere
    case 11: sink = static_cast<float>(i * 0x10000000); break;
    case 12: sink = static_cast<float>(i / (i - 16)); break;
    case 13: sink = static_cast<float>(1 << 2 * i); break;
    case 14: sink = reinterpret_cast<const Vector<float>*>(in)[i / 4].x[0]; break;
    case 15: memcpy(call.out + i - 1, in, 8); break;
    case 16: memcpy(call.out, in + i - 1, 12); break;
    case 17: memset(call.out + i - 1, 0, 8); break;
    case 18: *reinterpret_cast<Pixels*>(call.out + i - 4) = Pixels{}; break;
    case 19: *reinterpret_cast<Pixels*>(call.out) = *reinterpret_cast<const Pixels*>(in + i - 4); break;
  }
  if (call.mode == 20) sink = too_much(i);
  for (int k = 0; k < i; ++k) sink = local[k];
  static_cast<void>(sink);
}

// The sum of all threads by way of shared memory; or what depends on the order of lanes, of warps, of blocks.
__global__ void sums(Call call) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  const int thread = threadIdx.x;
  if (call.mode == 1) *call.out = static_cast<float>(thread);
  if (call.mode == 2 && thread % 32 == 0) *call.out = static_cast<float>(thread / 32);
  if (call.mode == 3) *call.out = static_cast<float>(blockIdx.x);
  if (call.mode != 0) return;
  shared[thread] = static_cast<const float*>(call.in)[thread];
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) shared[thread] += shared[thread + half];
  }
  if (thread == 0) call.out[blockIdx.x] = shared[0];
}

__global__ void shuffles(Call call) {
  const int thread = threadIdx.x, value = 100 + thread;
  const unsigned all = 0xffffffffu;
  int results[8] = {__shfl_sync(all, value, 5),         __shfl_sync(all, value, thread + 1, 8),
                    __shfl_xor_sync(all, value, 3),     __shfl_down_sync(all, value, 3u, 16),
                    __shfl_up_sync(all, value, 3u, 16), static_cast<int>(__ballot_sync(all, thread % 3 == 0) % 1024),
                    __any_sync(all, thread == 31),      __all_sync(all, thread != 31)};
  for (int i = 0; i < 8; ++i) call.out[thread * 8 + i] = static_cast<float>(results[i]);
}

}  // namespace
}  // namespace fastervit

#define EXAMPLE(name, kernel)                                                                                        \
  extern "C" FASTERVIT_API int example_##name(float* out, const void* in, int mode, int blocks, int threads,         \
                                              int shared_bytes) {                                                    \
    using namespace fastervit;                                                                                       \
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), threads, shared_bytes, nullptr, Call{out, in, mode}); \
  }
EXAMPLE(matmul_half, matmul<__half>)
EXAMPLE(matmul_bfloat16, matmul<__nv_bfloat16>)
EXAMPLE(matrices, matrices)
EXAMPLE(copies, copies)
EXAMPLE(pipeline, pipeline)
EXAMPLE(neighbours, neighbours)
EXAMPLE(readers, readers)
EXAMPLE(uninitialised, uninitialised)
EXAMPLE(diverge, diverge)
EXAMPLE(edges, edges)
EXAMPLE(sums, sums)
EXAMPLE(shuffles, shuffles)

extern "C" FASTERVIT_API void example_convert(float* wide, __half* half, __nv_bfloat16* bfloat16, int* rounded,
                                              int count, int narrow) {
  for (int i = 0; i < count; ++i) {
    if (narrow != 0) {
      half[i] = __float2half_rn(wide[i]);
      bfloat16[i] = __float2bfloat16_rn(wide[i]);
      rounded[i] = __float2int_rn(wide[i]);
    } else {
      wide[i] = half != nullptr ? __half2float(half[i]) : __bfloat162float(bfloat16[i]);
    }
  }
}

// A launcher that counts beyond what an int holds, not in the kernel.
extern "C" FASTERVIT_API int example_overflow(float* out, const void* in, int mode, int blocks, int threads,
                                              int shared_bytes) {
  const int elements = blocks * 0x40000000;  // mark: overflow
  return example_sums(out, in, mode, elements > 0 ? blocks : 1, threads, shared_bytes);
}

// The device that tuning sees.
extern "C" FASTERVIT_API int example_device(int* values) {
  fastervit::Device device;
  const int error = fastervit::current_device(device);
  values[0] = device.multiprocessors;
  values[1] = device.shared_memory_per_block;
  values[2] = device.shared_memory_per_multiprocessor;
  return error;
}
