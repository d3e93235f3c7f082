// What the runner uses of the CUDA runtime, on a CPU: a stream's work is done when somebody waits for it, GPU memory starts
// as NaN, and FASTERVIT_STANDIN_CUDA names a function that fails.
#include "cuda.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

struct CUstream_st {
  std::vector<std::function<void()>> work;
};
struct CUevent_st {
  bool reached = false;
};

namespace {

int elapsed_calls = 0;

cudaError_t answer(const char* function, cudaError_t error = cudaErrorMemoryAllocation) {
  const char* failing = std::getenv("FASTERVIT_STANDIN_CUDA");
  return failing != nullptr && std::string(failing) == function ? error : cudaSuccess;
}

cudaError_t allocate(void** address, std::size_t bytes) {
  *address = std::malloc(bytes);
  std::memset(*address, 0xff, bytes);
  return cudaSuccess;
}

}  // namespace

void fastervit::standin::enqueue(CUstream_st* stream, std::function<void()> work) {
  stream->work.push_back(std::move(work));
}

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = std::getenv("FASTERVIT_STANDIN_NO_GPU") == nullptr ? 1 : 0;
  return answer("cudaGetDeviceCount", cudaErrorInsufficientDriver);
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "CUDA driver version is insufficient";
}

cudaError_t cudaMalloc(void** address, std::size_t bytes) {
  const cudaError_t error = answer("cudaMalloc");
  return error == cudaSuccess ? allocate(address, bytes) : error;
}
cudaError_t cudaFree(void* address) { return std::free(address), cudaSuccess; }
cudaError_t cudaMallocHost(void** address, std::size_t bytes) {
  const cudaError_t error = answer("cudaMallocHost");
  return error == cudaSuccess ? allocate(address, bytes) : error;
}
cudaError_t cudaFreeHost(void* address) { return std::free(address), cudaSuccess; }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const cudaError_t error = answer("cudaStreamCreateWithFlags");
  if (error == cudaSuccess) *stream = new CUstream_st;
  return error;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  for (const auto& step : stream->work) step();
  stream->work.clear();
  return answer("cudaStreamSynchronize");
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  fastervit::standin::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return answer("cudaMemcpyAsync");
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  const cudaError_t error = answer("cudaEventCreate");
  if (error == cudaSuccess) *event = new CUevent_st;
  return error;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->reached = false;
  fastervit::standin::enqueue(stream, [=] { event->reached = true; });
  return answer("cudaEventRecord");
}

// The n-th time that is asked for is 7n modulo 100 milliseconds: in no order.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (!begin->reached || !end->reached) return cudaErrorNotReady;
  *milliseconds = static_cast<float>(++elapsed_calls * 7 % 100);
  return cudaSuccess;
}

}  // extern "C"
