// TensorRT's library, found by its name when the program runs: it is compiled with the headers alone.
#ifndef FASTERVIT_RUNNER_TENSORRT_H
#define FASTERVIT_RUNNER_TENSORRT_H

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "errors.h"

namespace fastervit::runner {

// Keeps TensorRT's first error for our one line; the rest is shown to who asks for it.
class Logger final : public nvinfer1::ILogger {
 public:
  explicit Logger(bool verbose) : verbose_(verbose) {}

  void log(Severity severity, const char* message) noexcept override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (severity <= Severity::kERROR && first_.empty()) first_ = message;
    if (verbose_ && severity <= Severity::kINFO) std::fprintf(stderr, "tensorrt: %s\n", message);
  }

  bool failed() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return !first_.empty();
  }

  // What a failed call is reported with.
  std::string reason() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string line = first_.empty() ? "TensorRT gave no reason" : first_;
    for (char& letter : line) letter = letter == '\n' ? ' ' : letter;
    return line;
  }

 private:
  const bool verbose_;
  std::mutex mutex_;
  std::string first_;
};

// The library stays open until the process ends: what TensorRT has started may still run when `main` returns.
class Library {
 public:
  // `named`: a file, or empty for the TensorRT that the system's loader finds.
  explicit Library(const std::string& named) {
    const std::string file = named.empty() ? "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR) : named;
    // Global, so that a plugin library finds the TensorRT that loads it.
    handle_ = dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (handle_ == nullptr) {
      fail("TensorRT ", NV_TENSORRT_MAJOR, " cannot be loaded: ", dlerror(),
           "; install it, or name its file with --library");
    }
    const int version = function<int()>("getInferLibVersion", file)();
    const int major = version / 10000, minor = version / 100 % 100;  // 10.3.0 is 100300; TensorRT-RTX 1.7.1 is 10701
    if (major != NV_TENSORRT_MAJOR) {
      fail(file, " is TensorRT ", major, ".", minor, ", this program was compiled for TensorRT ", NV_TENSORRT_MAJOR,
           "; compile it with the headers of that one");
    }
  }

  std::unique_ptr<nvinfer1::IRuntime> runtime(Logger& logger) const {
    const auto create = function<void*(void*, std::int32_t)>("createInferRuntime_INTERNAL", "TensorRT");
    void* const made = create(&logger, NV_TENSORRT_VERSION);
    // Without a driver, TensorRT 11.4's lean runtime logs an error and returns an address just above zero.
    if (made == nullptr || logger.failed()) fail("TensorRT does not start: ", logger.reason());
    return std::unique_ptr<nvinfer1::IRuntime>(static_cast<nvinfer1::IRuntime*>(made));
  }

 private:
  template <typename Signature>
  Signature* function(const char* name, const std::string& file) const {
    void* const found = dlsym(handle_, name);
    if (found == nullptr) fail(file, " is no TensorRT: it lacks ", name);
    return reinterpret_cast<Signature*>(found);
  }

  void* handle_ = nullptr;
};

}  // namespace fastervit::runner

#endif  // FASTERVIT_RUNNER_TENSORRT_H
