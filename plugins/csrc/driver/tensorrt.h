// What TensorRT gives a plugin: a logger, dimensions to calculate with, and fields.
#ifndef FASTERVIT_DRIVER_TENSORRT_H
#define FASTERVIT_DRIVER_TENSORRT_H

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "options.h"

namespace fastervit::driver {

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    const char* names[] = {"internal error", "error", "warning", "info", "verbose"};
    std::fprintf(stderr, "%s: %s\n", names[static_cast<int>(severity)], message);
  }
};

class LoggerFinder final : public nvinfer1::ILoggerFinder {
 public:
  nvinfer1::ILogger* findLogger() override { return &logger_; }
  ~LoggerFinder() override = default;

 private:
  Logger logger_;
};

// A dimension as its formula and its value for the shapes given. TensorRT's classes forward to what mImpl points to.
class Dimension final : public nvinfer1::IDimensionExpr, private nvinfer1::apiv::VDimensionExpr {
 public:
  Dimension(std::string formula, std::int64_t value, bool constant)
      : formula(std::move(formula)), value(value), constant(constant) {
    mImpl = this;
  }
  ~Dimension() noexcept override = default;
  const std::string formula;
  const std::int64_t value;
  const bool constant;

 private:
  bool isConstant() const override { return constant; }
  std::int64_t getConstantValue() const override { return constant ? value : INT64_MIN; }
  bool isSizeTensor() const override { return false; }
};

class Expressions final : public nvinfer1::IExprBuilder, private nvinfer1::apiv::VExprBuilder {
 public:
  Expressions() { mImpl = this; }
  ~Expressions() noexcept override = default;

  const Dimension* add(std::string formula, std::int64_t value, bool constant) {
    dimensions_.push_back(std::make_unique<Dimension>(std::move(formula), value, constant));
    return dimensions_.back().get();
  }

 private:
  const nvinfer1::IDimensionExpr* constant(std::int64_t value) override {
    return add(std::to_string(value), value, true);
  }

  const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation,
                                            const nvinfer1::IDimensionExpr& first,
                                            const nvinfer1::IDimensionExpr& second) override {
    const auto& a = static_cast<const Dimension&>(first);
    const auto& b = static_cast<const Dimension&>(second);
    const auto result = [&](const char* sign, std::int64_t value) {
      const bool constant = a.constant && b.constant;
      return add(constant ? std::to_string(value) : "(" + a.formula + " " + sign + " " + b.formula + ")", value,
                 constant);
    };
    switch (operation) {
      case nvinfer1::DimensionOperation::kPROD: return result("*", a.value * b.value);
      case nvinfer1::DimensionOperation::kFLOOR_DIV: return b.value == 0 ? nullptr : result("//", a.value / b.value);
      default: return nullptr;  // no operator of ours needs more
    }
  }

  const nvinfer1::IDimensionExpr* declareSizeTensor(std::int32_t, const nvinfer1::IDimensionExpr&,
                                                    const nvinfer1::IDimensionExpr&) override {
    return nullptr;
  }

  std::vector<std::unique_ptr<Dimension>> dimensions_;
};

// Fields that own their data, as TensorRT hands them to a creator.
class Fields {
 public:
  void add(const std::string& name, const std::string& value) try {
    if (value.find_first_of(".eE") == std::string::npos) {
      const auto number = static_cast<std::int32_t>(std::stol(value));
      add(name, nvinfer1::PluginFieldType::kINT32, &number, sizeof number, 1);
    } else {
      const float number = std::stof(value);
      add(name, nvinfer1::PluginFieldType::kFLOAT32, &number, sizeof number, 1);
    }
  } catch (const std::logic_error&) {
    fail("--attribute ", name, "=", value, ": '", value, "' is no number");
  }

  // A copy of what a plugin serialises.
  void add(const nvinfer1::PluginField& field) {
    const auto bytes = static_cast<std::size_t>(field.length) * 4;
    if (field.type != nvinfer1::PluginFieldType::kINT32 && field.type != nvinfer1::PluginFieldType::kFLOAT32) {
      fail("the plugin serialises ", field.name, " as a field of type ", static_cast<int>(field.type));
    }
    add(field.name, field.type, field.data, bytes, field.length);
  }

  nvinfer1::PluginFieldCollection collection() const {
    return {static_cast<std::int32_t>(fields_.size()), fields_.data()};
  }

  std::string json() const {
    std::ostringstream text;
    for (const nvinfer1::PluginField& field : fields_) {
      text << (text.tellp() > 0 ? ", " : "") << '"' << field.name << "\": ";
      if (field.type == nvinfer1::PluginFieldType::kINT32) {
        text << *static_cast<const std::int32_t*>(field.data);
      } else {
        text << *static_cast<const float*>(field.data);
      }
    }
    return "{" + text.str() + "}";
  }

 private:
  void add(const std::string& name, nvinfer1::PluginFieldType type, const void* data, std::size_t bytes, int length) {
    auto memory = std::make_unique<unsigned char[]>(std::max<std::size_t>(bytes, sizeof(std::max_align_t)));
    std::memcpy(memory.get(), data, bytes);
    names_.push_back(std::make_unique<std::string>(name));
    fields_.emplace_back(names_.back()->c_str(), memory.get(), type, length);
    data_.push_back(std::move(memory));
  }

  std::vector<std::unique_ptr<std::string>> names_;
  std::vector<std::unique_ptr<unsigned char[]>> data_;
  std::vector<nvinfer1::PluginField> fields_;
};

}  // namespace fastervit::driver

#endif  // FASTERVIT_DRIVER_TENSORRT_H
