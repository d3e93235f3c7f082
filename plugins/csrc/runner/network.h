// An engine with one float32 input, images, and float32 outputs: logits, masks or detections of each.
#ifndef FASTERVIT_RUNNER_NETWORK_H
#define FASTERVIT_RUNNER_NETWORK_H

#include <NvInferRuntime.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "errors.h"
#include "options.h"
#include "shape.h"
#include "task.h"
#include "tensorrt.h"

namespace fastervit::runner {

using nvinfer1::DataType;
using nvinfer1::OptProfileSelector;
using nvinfer1::TensorIOMode;

class Network {
 public:
  // The plugin library, the engine, and memory for the largest batch of images of that shape (N, C, H, W), in this order.
  Network(const Options& options, std::vector<unsigned char> engine, const Shape& images)
      : name_(options.engine), logger_(options.verbose), runtime_(Library(options.library).runtime(logger_)) {
    load_plugins(options.plugins);
    if (options.host_code) runtime_->setEngineHostCodeAllowed(true);
    engine_.reset(runtime_->deserializeCudaEngine(engine.data(), engine.size()));
    if (engine_ == nullptr) fail("TensorRT cannot load ", name_, ": ", logger_.reason());
    find_tensors();
    choose_profile(options.profile, images);
    context_.reset(engine_->createExecutionContext());
    if (context_ == nullptr) fail("TensorRT cannot prepare ", name_, ": ", logger_.reason());
    if (!context_->setOptimizationProfileAsync(static_cast<std::int32_t>(options.profile), stream_.get())) failed();
    stream_.wait();
    take_memory();
  }

  std::int64_t most() const { return most_; }
  Task task() const { return task_; }
  const std::vector<Output>& outputs() const { return outputs_; }

  // Where the next images go, `most()` of them at the most.
  float* images() const { return host_images_->data(); }

  // What it yields of image `number` of the last run, until the next.
  Rows rows(std::int64_t number) const {
    Rows found;
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      found.push_back(results_[i].host.data() + number * outputs_[i].size());
    }
    return found;
  }

  // The first `count` images there.
  void run(std::int64_t count) {
    const std::int64_t batch = std::max(count, least_);
    const std::size_t floats = image_bytes_ / sizeof(float);
    for (std::int64_t i = count; i < batch; ++i) {  // an image that is there anyway: no zeros that overflow somewhere
      const float* last = images() + floats * static_cast<std::size_t>(count - 1);
      std::copy(last, last + floats, images() + floats * static_cast<std::size_t>(i));
    }
    set_batch(batch);
    const std::size_t input = image_bytes_ * static_cast<std::size_t>(batch);
    check(cudaMemcpyAsync(device_images_->address(), images(), input, cudaMemcpyHostToDevice, stream_.get()),
          "copying images to the GPU");
    enqueue();
    for (Result& result : results_) {
      const std::size_t bytes = result.image_bytes * static_cast<std::size_t>(count);
      check(cudaMemcpyAsync(result.host.data(), result.device.address(), bytes, cudaMemcpyDeviceToHost, stream_.get()),
            "copying what was computed from the GPU");
    }
    stream_.wait();
  }

  // Milliseconds on the GPU of each of `repeat` executions of what `run` ran last, without copies.
  std::vector<float> latencies(std::int64_t repeat) {
    constexpr int kWarmUp = 10;
    for (int i = 0; i < kWarmUp; ++i) enqueue();
    std::vector<float> milliseconds;
    Event begin, end;
    for (std::int64_t i = 0; i < repeat; ++i) {
      begin.record(stream_);
      enqueue();
      end.record(stream_);
      stream_.wait();
      milliseconds.push_back(end.since(begin));
    }
    return milliseconds;
  }

 private:
  // Of one output, for the largest batch.
  struct Result {
    Result(std::size_t bytes, std::int64_t images)
        : image_bytes(bytes / static_cast<std::size_t>(images)), host(bytes), device(bytes) {}
    const std::size_t image_bytes;
    HostMemory host;
    DeviceMemory device;
  };

  [[noreturn]] void failed() { fail(name_, " cannot be run: ", logger_.reason()); }

  void load_plugins(const std::string& library) {
    if (library.empty()) return;
    // With a slash: a bare name would be looked up in the system's folders.
    const std::string file = library.find('/') == library.npos ? "./" + library : library;
    if (runtime_->getPluginRegistry().loadLibrary(file.c_str()) == nullptr) {
      fail("the plugins of ", library, " cannot be loaded: ", logger_.reason());
    }
  }

  void find_tensors() {
    for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      const std::string tensor = engine_->getIOTensorName(i);
      const bool input = engine_->getTensorIOMode(tensor.c_str()) == TensorIOMode::kINPUT;
      if (input && !input_.empty()) {
        fail(name_, " has several inputs (", input_, ", ", tensor, "); this runs engines that take images alone");
      }
      if (engine_->getTensorDataType(tensor.c_str()) != DataType::kFLOAT ||
          engine_->getTensorFormat(tensor.c_str()) != nvinfer1::TensorFormat::kLINEAR) {
        fail(name_, " wants ", tensor,
             " in another type or layout than linear float32; fastervit-export writes such inputs and outputs");
      }
      if (input) {
        input_ = tensor;
      } else {
        outputs_.push_back({tensor, {}});
      }
    }
    if (input_.empty() || outputs_.empty()) fail(name_, " has no ", input_.empty() ? "input" : "output");
  }

  // What the engine takes for each dimension, compared with the images.
  void choose_profile(std::int64_t profile, const Shape& images) {
    if (profile >= engine_->getNbOptimizationProfiles()) {
      fail("--profile ", profile, ": ", name_, " has ", engine_->getNbOptimizationProfiles(), ", counted from 0");
    }
    const auto number = static_cast<std::int32_t>(profile);
    const nvinfer1::Dims shape = engine_->getTensorShape(input_.c_str());
    const nvinfer1::Dims least = engine_->getProfileShape(input_.c_str(), number, OptProfileSelector::kMIN);
    const nvinfer1::Dims most = engine_->getProfileShape(input_.c_str(), number, OptProfileSelector::kMAX);
    if (shape.nbDims != 4) fail(name_, " takes no images: its input ", input_, " has ", shape.nbDims, " dimensions");
    dims_ = shape;
    for (int axis = 0; axis < 4; ++axis) {
      const bool fixed = shape.d[axis] >= 0;
      const std::int64_t low = fixed ? shape.d[axis] : least.d[axis], high = fixed ? shape.d[axis] : most.d[axis];
      const std::int64_t size = images[static_cast<std::size_t>(axis)];
      if (axis == 0) {
        least_ = low, most_ = high;
      } else if (size < low || size > high) {
        const std::string takes =
            low == high ? std::to_string(low) : std::to_string(low) + " to " + std::to_string(high);
        fail(name_, " takes images of ", takes, " along ", "NCHW"[axis], ", these have ", size);
      } else {
        dims_.d[axis] = size;
      }
    }
    if (least_ < 1 || most_ < least_) fail(name_, " gives no batch sizes for profile ", profile);
  }

  void take_memory() {
    const std::size_t all = float_bytes({most_, dims_.d[1], dims_.d[2], dims_.d[3]}, name_);
    image_bytes_ = all / static_cast<std::size_t>(most_);
    set_batch(most_);
    for (Output& output : outputs_) {
      const nvinfer1::Dims found = context_->getTensorShape(output.name.c_str());
      const Shape shape(found.d, found.d + std::max(found.nbDims, 0));
      if (shape.empty() || shape[0] != most_ || *std::min_element(shape.begin(), shape.end()) < 1) {
        fail(name_, " yields ", output.name, " ", text_of(shape), " for ", most_, " images, not one part for each");
      }
      output.shape.assign(shape.begin() + 1, shape.end());
    }
    task_ = task_of(outputs_, name_);
    host_images_ = std::make_unique<HostMemory>(all);
    device_images_ = std::make_unique<DeviceMemory>(all);
    if (!context_->setTensorAddress(input_.c_str(), device_images_->address())) failed();
    for (const Output& output : outputs_) {
      Shape whole = output.shape;
      whole.insert(whole.begin(), most_);
      results_.emplace_back(float_bytes(whole, name_), most_);
      if (!context_->setTensorAddress(output.name.c_str(), results_.back().device.address())) failed();
    }
  }

  void set_batch(std::int64_t batch) {
    dims_.d[0] = batch;
    if (!context_->setInputShape(input_.c_str(), dims_)) failed();
  }

  void enqueue() {
    if (!context_->enqueueV3(stream_.get())) failed();
  }

  // In the order in which they are needed; they go in the opposite one.
  std::string name_, input_;
  std::vector<Output> outputs_;
  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  Stream stream_;
  std::unique_ptr<HostMemory> host_images_;
  std::unique_ptr<DeviceMemory> device_images_;
  std::deque<Result> results_;  // in the order of the outputs; none of them moves
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  nvinfer1::Dims dims_{};
  std::int64_t least_ = 0, most_ = 0;
  std::size_t image_bytes_ = 0;
  Task task_ = Task::kClassification;
};

}  // namespace fastervit::runner

#endif  // FASTERVIT_RUNNER_NETWORK_H
