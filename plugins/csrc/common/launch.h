// How a kernel is started and what it learns of its GPU. The tests replace this header by one that runs kernels on a CPU.
#ifndef FASTERVIT_COMMON_LAUNCH_H
#define FASTERVIT_COMMON_LAUNCH_H

#include <cuda_runtime.h>

namespace fastervit {

// What tuning depends on.
struct Device {
  int multiprocessors;
  int shared_memory_per_block;           // bytes, with opt-in
  int shared_memory_per_multiprocessor;  // bytes
};

// The current device. Returns a cudaError_t.
inline int current_device(Device& device) {
  int id = 0;
  cudaError_t error = cudaGetDevice(&id);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, id);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&device.shared_memory_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&device.shared_memory_per_multiprocessor,
                                   cudaDevAttrMaxSharedMemoryPerMultiprocessor, id);
  }
  return static_cast<int>(error);
}

// Starts `kernel` on `stream` (a cudaStream_t) with `shared_bytes` of dynamic shared memory. Returns a cudaError_t.
// Nothing here allocates or waits, so a launch can be captured into a CUDA graph.
template <typename Parameters>
int launch(void (*kernel)(Parameters), dim3 grid, int threads, int shared_bytes, void* stream,
           const Parameters& parameters) {
  constexpr int without_opt_in = 48 * 1024;
  if (shared_bytes > without_opt_in) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return static_cast<int>(error);
  }
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(parameters);
  return static_cast<int>(cudaGetLastError());
}

// The dynamic shared memory of the running block, aligned to 16 bytes.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char fastervit_dynamic_shared[];
  return fastervit_dynamic_shared;
}

}  // namespace fastervit

#endif  // FASTERVIT_COMMON_LAUNCH_H
