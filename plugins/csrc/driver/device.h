// Memory and streams of what the driver runs kernels on: a GPU, or a CPU if the library's kernels are emulated.
#ifndef FASTERVIT_DRIVER_DEVICE_H
#define FASTERVIT_DRIVER_DEVICE_H

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstddef>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastervit::driver {

using Bytes = std::vector<unsigned char>;

constexpr unsigned char kPoison = 0xff;  // NaN in every floating-point type

#ifdef FASTERVIT_EMULATED

constexpr int kOpenMode = RTLD_NOW | RTLD_GLOBAL;  // the emulator comes with the kernels, and is found by name

// Memory of which the emulator checks every access to the byte.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes), address_(bytes == 0 ? nullptr : allocate(bytes)) {
    if (bytes > 0 && address_ == nullptr) throw std::runtime_error("out of memory");
  }
  Memory(const Memory&) = delete;
  void* address() const { return address_; }
  void poison() {
    if (bytes_ > 0) std::memset(address_, kPoison, bytes_);
  }
  void write(const Bytes& data) {
    if (bytes_ > 0) std::memcpy(address_, data.data(), bytes_);
  }
  Bytes read() const {
    const auto* begin = static_cast<const unsigned char*>(address_);
    return Bytes(begin, begin + bytes_);
  }

 private:
  static void* allocate(std::size_t bytes) {
    const auto allocate = reinterpret_cast<void* (*)(std::size_t)>(dlsym(RTLD_DEFAULT, "fastervit_emulator_allocate"));
    if (allocate == nullptr) throw std::runtime_error("the library has no emulated kernels");
    return allocate(bytes);
  }
  std::size_t bytes_;
  void* address_;  // until the process ends
};

inline void run(const std::function<int(cudaStream_t)>& work, bool graph, const std::function<void()>& /*before*/) {
  if (graph) throw std::runtime_error("emulated kernels cannot be captured into a graph");
  if (work(nullptr) == 0) return;
  const auto error = reinterpret_cast<const char* (*)()>(dlsym(RTLD_DEFAULT, "fastervit_emulator_error"));
  throw std::runtime_error(std::string("enqueue failed: ") + (error == nullptr ? "" : error()));
}

#else

constexpr int kOpenMode = RTLD_NOW | RTLD_LOCAL;  // as TensorRT does

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Memory with a margin behind it, in which nobody may write.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) { check(cudaMalloc(&address_, bytes + kMargin), "cudaMalloc"); }
  Memory(const Memory&) = delete;
  ~Memory() { cudaFree(address_); }
  void* address() const { return address_; }
  void poison() { check(cudaMemset(address_, kPoison, bytes_ + kMargin), "cudaMemset"); }
  void write(const Bytes& data) {
    poison();
    check(cudaMemcpy(address_, data.data(), bytes_, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  Bytes read() const {
    Bytes data(bytes_ + kMargin);
    check(cudaMemcpy(data.data(), address_, data.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    for (std::size_t i = bytes_; i < data.size(); ++i) {
      if (data[i] != kPoison) throw std::runtime_error("a kernel wrote behind the end of its memory");
    }
    data.resize(bytes_);
    return data;
  }

 private:
  static constexpr std::size_t kMargin = 4096;
  std::size_t bytes_;
  void* address_ = nullptr;
};

// Runs `work` on a stream: at once, or captured into a graph that is launched after `before`.
inline void run(const std::function<int(cudaStream_t)>& work, bool graph, const std::function<void()>& before) {
  const auto wait = [] { check(cudaDeviceSynchronize(), "the kernels"); };
  cudaStream_t stream = nullptr;
  wait();  // for copies: the stream does not
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  if (graph) check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  if (work(stream) != 0) throw std::runtime_error("enqueue failed");
  if (graph) {
    cudaGraph_t captured = nullptr;
    cudaGraphExec_t executable = nullptr;
    check(cudaStreamEndCapture(stream, &captured), "cudaStreamEndCapture");
    check(cudaGraphInstantiateWithFlags(&executable, captured, 0), "cudaGraphInstantiate");
    before();
    wait();
    check(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
    wait();
    check(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
    check(cudaGraphDestroy(captured), "cudaGraphDestroy");
  }
  wait();
  check(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

#endif

}  // namespace fastervit::driver

#endif  // FASTERVIT_DRIVER_DEVICE_H
