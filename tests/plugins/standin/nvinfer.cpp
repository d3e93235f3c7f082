// A libnvinfer.so with the tables of virtual functions that the real headers declare, for the calls that the runner makes.
// Every other call ends the process (bases.h, made from the headers by build.py). An engine is a text of lines "name=value";
// logits are sums of pixels with whole weights, so that they are exact; an output that a line rows.NAME=FILE names is the row of
// that file, of raw float32, whose number is the image's first pixel. It insists on what TensorRT insists on: plugins before
// the engine that needs them, shapes within the profile, addresses before enqueueing, the engine outliving its contexts.
// Calls that matter are noted in the file that FASTERVIT_STANDIN_LOG names.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "bases.h"
#include "cuda.h"

namespace nvinfer1::standin {
namespace {

void note(const std::string& line) {
  if (const char* file = std::getenv("FASTERVIT_STANDIN_LOG")) std::ofstream(file, std::ios::app) << line << "\n";
}

std::string text_of(const Dims& dims) {
  std::string text;
  for (int i = 0; i < dims.nbDims; ++i) text += (i == 0 ? "" : ",") + std::to_string(dims.d[i]);
  return text;
}

Dims dims_of(const std::string& text) {
  Dims dims{};
  std::istringstream stream(text);
  for (std::string size; std::getline(stream, size, ',');) dims.d[dims.nbDims++] = std::stoll(size);
  return dims;
}

struct Tensor {
  TensorIOMode mode;
  DataType type;
  TensorFormat format;
  Dims shape;
};

// What the text says.
class Plan {
 public:
  explicit Plan(const std::string& text) {
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) {
      const std::size_t equals = line.find('=');
      values_[line.substr(0, equals)] = equals == line.npos ? "" : line.substr(equals + 1);
    }
  }
  bool has(const std::string& name) const { return values_.count(name) > 0; }
  std::string get(const std::string& name) const { return has(name) ? values_.at(name) : ""; }
  int number(const std::string& name) const { return has(name) ? std::stoi(values_.at(name)) : 0; }
  bool fails(const std::string& call) const { return get("fail") == call; }

 private:
  std::map<std::string, std::string> values_;
};

class Engine;

class Context final : public ExecutionContextBase {
 public:
  explicit Context(Engine& engine);
  ~Context() noexcept override;
  bool setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept override;
  bool setInputShape(char const* name, Dims const& dims) noexcept override;
  Dims getTensorShape(char const* name) const noexcept override;
  bool setTensorAddress(char const* name, void* data) noexcept override;
  bool enqueueV3(cudaStream_t stream) noexcept override;

 private:
  Engine& engine_;
  int profile_ = -1, enqueued_ = 0;
  Dims shape_{};
  const float* images_ = nullptr;
  std::map<std::string, float*> outputs_;
};

// Row `number` of a file of rows of `size` floats.
void copy_row(const std::string& file, std::int64_t number, std::int64_t size, float* to) {
  std::ifstream stream(file, std::ios::binary);
  stream.seekg(number * size * static_cast<std::int64_t>(sizeof(float)));
  stream.read(reinterpret_cast<char*>(to), size * static_cast<std::int64_t>(sizeof(float)));
  if (!stream) unexpected("rows that are not there");
}

class Engine final : public CudaEngineBase {
 public:
  Engine(const std::string& text, ILogger& logger, int& alive) : plan(text), logger(logger), alive_(alive) {
    mImpl = this;
    ++alive_;
    std::istringstream stream(plan.get("tensors"));  // name:in|out:type:format:shape, separated by spaces
    for (std::string entry; stream >> entry;) {
      std::istringstream parts(entry);
      std::string name, mode, type, format, shape;
      for (std::string* part : {&name, &mode, &type, &format, &shape}) std::getline(parts, *part, ':');
      names.push_back(name);
      tensors[name] = {mode == "in" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT,
                       static_cast<DataType>(std::stoi(type)), static_cast<TensorFormat>(std::stoi(format)),
                       dims_of(shape)};
    }
  }
  ~Engine() noexcept override {
    if (contexts != 0) unexpected("an engine that goes before its contexts");
    --alive_;
    note("engine gone");
  }

  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override {
    if (plan.fails("context")) return error("no memory for a context"), nullptr;
    return new Context(*this);
  }
  int32_t getNbOptimizationProfiles() const noexcept override { return plan.number("profiles"); }
  int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(names.size()); }
  char const* getIOTensorName(int32_t i) const noexcept override { return names[static_cast<std::size_t>(i)].c_str(); }
  TensorIOMode getTensorIOMode(char const* name) const noexcept override { return tensors.at(name).mode; }
  DataType getTensorDataType(char const* name) const noexcept override { return tensors.at(name).type; }
  TensorFormat getTensorFormat(char const* name) const noexcept override { return tensors.at(name).format; }
  Dims getTensorShape(char const* name) const noexcept override { return tensors.at(name).shape; }
  Dims getProfileShape(char const*, int32_t profile, OptProfileSelector select) const noexcept override {
    return dims_of(plan.get((select == OptProfileSelector::kMIN ? "least" : "most") + std::to_string(profile)));
  }

  void error(const char* message) const { logger.log(ILogger::Severity::kERROR, message); }

  Plan plan;
  ILogger& logger;
  std::vector<std::string> names;
  std::map<std::string, Tensor> tensors;
  int contexts = 0;

 private:
  int& alive_;
};

Context::Context(Engine& engine) : engine_(engine) {
  mImpl = this;
  ++engine_.contexts;
}
Context::~Context() noexcept { --engine_.contexts; }

bool Context::setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept {
  note("profile " + std::to_string(profile));
  if (engine_.plan.fails("profile")) return engine_.error("profile in use"), false;
  profile_ = profile;
  return profile >= 0 && profile < engine_.getNbOptimizationProfiles();
}

bool Context::setInputShape(char const* name, Dims const& dims) noexcept {
  note("shape " + text_of(dims));
  const Dims least = engine_.getProfileShape(name, profile_, OptProfileSelector::kMIN);
  const Dims most = engine_.getProfileShape(name, profile_, OptProfileSelector::kMAX);
  for (int i = 0; i < dims.nbDims; ++i) {
    if (profile_ < 0 || dims.nbDims != least.nbDims || dims.d[i] < least.d[i] || dims.d[i] > most.d[i]) {
      return engine_.error("shape outside of the profile\nsecond line"), false;
    }
  }
  shape_ = dims;
  return true;
}

Dims Context::getTensorShape(char const* name) const noexcept {
  Dims dims = engine_.getTensorShape(name);
  if (shape_.nbDims > 0 && dims.d[0] < 0) dims.d[0] = shape_.d[0];
  return dims;
}

bool Context::setTensorAddress(char const* name, void* data) noexcept {
  if (engine_.plan.fails("address")) return engine_.error("bad address"), false;
  if (engine_.getTensorIOMode(name) == TensorIOMode::kINPUT) {
    images_ = static_cast<const float*>(data);
  } else {
    outputs_[name] = static_cast<float*>(data);
  }
  return true;
}

bool Context::enqueueV3(cudaStream_t stream) noexcept {
  note("run " + text_of(shape_));
  if (++enqueued_ == engine_.plan.number("fails_at")) return engine_.error("kernel gone"), false;
  if (shape_.nbDims == 0 || images_ == nullptr || outputs_.size() + 1 != engine_.names.size())
    unexpected("enqueueV3 before shapes and addresses");
  const int classes = engine_.plan.number("classes");
  const std::int64_t pixels = shape_.d[1] * shape_.d[2] * shape_.d[3];
  const bool nan = engine_.plan.has("nan"), tied = engine_.plan.has("tied");
  for (const auto& [name, rows] : outputs_) {
    if (!engine_.plan.has("rows." + name)) continue;
    std::int64_t size = 1;
    for (int i = 1; i < engine_.tensors.at(name).shape.nbDims; ++i) size *= engine_.tensors.at(name).shape.d[i];
    const auto copy = [=, file = engine_.plan.get("rows." + name), to = rows, batch = shape_.d[0], images = images_] {
      for (std::int64_t n = 0; n < batch; ++n) {
        copy_row(file, static_cast<std::int64_t>(images[n * pixels]), size, to + n * size);
      }
    };
    fastervit::standin::enqueue(stream, copy);
  }
  const bool played = engine_.plan.has("rows." + outputs_.begin()->first);
  fastervit::standin::enqueue(stream, [=, batch = shape_.d[0], images = images_, logits = outputs_.begin()->second] {
    note("last image " + std::to_string(static_cast<int>(images[(batch - 1) * pixels])));
    for (std::int64_t n = 0; n < batch && !played; ++n) {
      for (int k = 0; k < classes; ++k) {
        double sum = 0;
        for (std::int64_t i = 0; i < pixels; ++i) {
          sum += images[n * pixels + i] * static_cast<double>((i * 7 + (tied ? 0 : k) * 13) % 11 - 5);
        }
        logits[n * classes + k] = static_cast<float>(sum);
      }
      if (nan && n == batch - 1) logits[n * classes + 1] = __builtin_nanf("");
    }
  });
  return true;
}

class Registry final : public PluginRegistryBase {
 public:
  ~Registry() noexcept override = default;
  PluginLibraryHandle loadLibrary(AsciiChar const* path) noexcept override {
    void* library = dlopen(path, RTLD_LAZY);
    if (library == nullptr || dlsym(library, "getCreators") == nullptr) {
      logger->log(ILogger::Severity::kERROR, "no plugin library");
      return nullptr;
    }
    note(std::string("plugins ") + path);
    loaded = true;
    return library;
  }
  ILogger* logger = nullptr;
  bool loaded = false;
};

class Runtime final : public RuntimeBase {
 public:
  explicit Runtime(ILogger& logger) : logger_(logger) {
    mImpl = this;
    registry_.logger = &logger;
  }
  ~Runtime() noexcept override {
    if (alive_ != 0) unexpected("a runtime that goes before its engines");
    note("runtime gone");
  }
  IPluginRegistry& getPluginRegistry() noexcept override { return registry_; }
  void setEngineHostCodeAllowed(bool allowed) noexcept override { host_code_ = allowed; }
  ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
    const std::string text(static_cast<const char*>(blob), size);
    note("engine of " + std::to_string(size) + " bytes");
    const Plan plan(text);
    logger_.log(ILogger::Severity::kINFO, "loading");
    const char* problem = !plan.has("standin")                       ? "magic tag does not match"
                          : plan.has("host_code") && !host_code_     ? "host code is not allowed"
                          : plan.has("plugins") && !registry_.loaded ? "no creator of WindowAttention"
                                                                     : nullptr;
    if (problem != nullptr) {
      logger_.log(ILogger::Severity::kERROR, problem);
      logger_.log(ILogger::Severity::kERROR, "and what follows from it");
      return nullptr;
    }
    return new Engine(text, logger_, alive_);
  }

 private:
  ILogger& logger_;
  Registry registry_;
  bool host_code_ = false;
  int alive_ = 0;
};

}  // namespace
}  // namespace nvinfer1::standin

extern "C" __attribute__((visibility("default"))) int32_t getInferLibVersion() noexcept {
  const char* other = std::getenv("FASTERVIT_STANDIN_VERSION");
  return other == nullptr ? NV_TENSORRT_VERSION : std::atoi(other);
}

extern "C" __attribute__((visibility("default"))) void* createInferRuntime_INTERNAL(void* logger,
                                                                                    int32_t version) noexcept {
  auto& to = *static_cast<nvinfer1::ILogger*>(logger);
  if (version != NV_TENSORRT_VERSION || std::getenv("FASTERVIT_STANDIN_NO_RUNTIME") != nullptr) {
    to.log(nvinfer1::ILogger::Severity::kINTERNAL_ERROR, "CUDA initialization failure with error: 35");
    return reinterpret_cast<void*>(0x228);  // as that of TensorRT 11.4 does
  }
  return static_cast<nvinfer1::IRuntime*>(new nvinfer1::standin::Runtime(to));
}
