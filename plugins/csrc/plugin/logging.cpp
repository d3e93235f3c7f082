#include "logging.h"

#include <atomic>
#include <cstdio>
#include <mutex>
#include <set>
#include <string>

#include "tensorrt.h"

namespace fastervit::plugin {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

nvinfer1::ILogger* logger() {
  nvinfer1::ILoggerFinder* finder = logger_finder;
  nvinfer1::ILogger* found = finder == nullptr ? nullptr : finder->findLogger();
  return found == nullptr ? global_logger() : found;
}

void log(nvinfer1::ILogger::Severity severity, const char* message) {
  if (nvinfer1::ILogger* to = logger()) {
    to->log(severity, message);
  } else {
    std::fprintf(stderr, "%s\n", message);
  }
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) {
  // Called by another TensorRT than we know the headers of, its virtual functions may be others: stderr is safe.
  const int major = finder == nullptr ? 0 : tensorrt_major_of(finder);
  logger_finder = major == 0 || major == NV_TENSORRT_MAJOR ? finder : nullptr;
}

void log_error(const char* message) { log(nvinfer1::ILogger::Severity::kERROR, message); }

void warn_once(const char* message) {
  static std::mutex mutex;
  static std::set<std::string> said;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!said.insert(message).second) return;
  }
  log(nvinfer1::ILogger::Severity::kWARNING, message);
}

}  // namespace fastervit::plugin
