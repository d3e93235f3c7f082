// Memory, streams and events of a GPU, each freed by who holds it.
#ifndef FASTERVIT_RUNNER_DEVICE_H
#define FASTERVIT_RUNNER_DEVICE_H

#include <cuda_runtime_api.h>

#include <cstddef>

#include "errors.h"

namespace fastervit::runner {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(what, " failed: ", cudaGetErrorString(error));
}

inline void require_gpu() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess)
    fail("no GPU can be used: ", cudaGetErrorString(error), "; nvidia-smi (Jetson: tegrastats) must see one");
  if (count == 0) fail("no GPU can be used: CUDA_VISIBLE_DEVICES hides it, or there is none");
}

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) { check(cudaMalloc(&address_, bytes), "taking GPU memory"); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { cudaFree(address_); }
  void* address() const { return address_; }

 private:
  void* address_ = nullptr;
};

// Page-locked floats, which the GPU copies by itself.
class HostMemory {
 public:
  explicit HostMemory(std::size_t bytes) { check(cudaMallocHost(&address_, bytes), "taking page-locked memory"); }
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  ~HostMemory() { cudaFreeHost(address_); }
  float* data() const { return static_cast<float*>(address_); }

 private:
  void* address_ = nullptr;
};

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "the run on the GPU"); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "making an event"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  void record(const Stream& stream) { check(cudaEventRecord(event_, stream.get()), "recording an event"); }
  // Milliseconds from `earlier` to this one, both reached.
  float since(const Event& earlier) const {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, earlier.event_, event_), "reading an event");
    return milliseconds;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace fastervit::runner

#endif  // FASTERVIT_RUNNER_DEVICE_H
