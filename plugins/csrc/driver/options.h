// What the command line says, in TensorRT's terms.
#ifndef FASTERVIT_DRIVER_OPTIONS_H
#define FASTERVIT_DRIVER_OPTIONS_H

#include <NvInferRuntime.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fastervit::driver {

using nvinfer1::DataType;
using nvinfer1::TensorFormat;

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

struct TypeName {
  DataType type;
  const char* name;
  std::size_t bytes;
};
constexpr TypeName kTypes[] = {{DataType::kFLOAT, "fp32", 4},
                               {DataType::kHALF, "fp16", 2},
                               {DataType::kBF16, "bf16", 2},
                               {DataType::kINT8, "int8", 1}};

struct FormatName {
  TensorFormat format;
  const char* name;
};
constexpr FormatName kFormats[] = {{TensorFormat::kLINEAR, "linear"}, {TensorFormat::kHWC, "hwc"},
                                   {TensorFormat::kHWC8, "hwc8"},     {TensorFormat::kHWC16, "hwc16"},
                                   {TensorFormat::kCHW2, "chw2"},     {TensorFormat::kCHW4, "chw4"},
                                   {TensorFormat::kCHW16, "chw16"},   {TensorFormat::kCHW32, "chw32"},
                                   {TensorFormat::kDHWC, "dhwc"},     {TensorFormat::kDHWC8, "dhwc8"}};

inline TypeName type_named(const std::string& name) {
  for (const TypeName& type : kTypes) {
    if (name == type.name) return type;
  }
  fail("'", name, "' is no type: fp32, fp16, bf16, int8");
}

inline TypeName type_of(DataType value) {
  for (const TypeName& type : kTypes) {
    if (value == type.type) return type;
  }
  fail("the plugin gives a tensor of type ", static_cast<int>(value));
}

inline TensorFormat format_named(const std::string& name) {
  for (const FormatName& format : kFormats) {
    if (name == format.name) return format.format;
  }
  fail("'", name, "' is no format: linear, hwc, hwc8");
}

inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

inline std::int64_t number(const std::string& text) {
  std::size_t used = 0;
  std::int64_t value = -1;
  try {
    value = std::stoll(text, &used);
  } catch (const std::exception&) {
  }
  if (text.empty() || used != text.size() || value < 0) fail("'", text, "' is no number");
  return value;
}

struct Tensor {
  std::string file;
  nvinfer1::DynamicPluginTensorDesc desc{};  // with the dimensions that TensorRT knows when it builds
  nvinfer1::Dims dims{};                     // when it runs

  nvinfer1::PluginTensorDesc concrete() const {
    nvinfer1::PluginTensorDesc concrete = desc.desc;
    concrete.dims = dims;
    return concrete;
  }

  std::size_t bytes() const {
    std::size_t bytes = type_of(desc.desc.type).bytes;
    for (int axis = 0; axis < dims.nbDims; ++axis) bytes *= static_cast<std::size_t>(dims.d[axis]);
    if (desc.desc.format == TensorFormat::kHWC8 && dims.d[1] % 8 != 0) fail("hwc8 with ", dims.d[1], " channels");
    return bytes;
  }
};

inline Tensor input_of(const std::string& text) {
  const std::vector<std::string> parts = split(text, ':');
  if (parts.size() < 3 || parts.size() > 4) fail("--input ", text, ": must be FILE:TYPE:SHAPE[:FORMAT]");
  Tensor tensor;
  tensor.file = parts[0];
  tensor.desc.desc.type = type_named(parts[1]).type;
  tensor.desc.desc.format = parts.size() == 4 ? format_named(parts[3]) : TensorFormat::kLINEAR;
  tensor.desc.desc.scale = -1.0f;  // what TensorRT gives for explicit quantisation
  for (const std::string& size : split(parts[2], 'x')) {
    const int axis = tensor.dims.nbDims++;
    if (axis == nvinfer1::Dims::MAX_DIMS) fail("--input ", text, ": too many dimensions");
    const std::size_t mark = size.find('?');
    const std::string most = mark == std::string::npos ? "" : size.substr(mark + 1);
    tensor.dims.d[axis] = number(size.substr(0, mark));
    tensor.desc.max.d[axis] = most.empty() ? tensor.dims.d[axis] : number(most);
    tensor.desc.desc.dims.d[axis] = mark == std::string::npos ? tensor.dims.d[axis] : -1;
  }
  tensor.desc.min = tensor.desc.opt = tensor.dims;
  tensor.desc.max.nbDims = tensor.desc.desc.dims.nbDims = tensor.dims.nbDims;
  return tensor;
}

struct Options {
  std::string library, name, output, tactic;
  std::vector<std::pair<std::string, std::string>> attributes;
  std::vector<Tensor> inputs;
  TensorFormat output_format = TensorFormat::kLINEAR;
  bool formats = false, graph = false;
};

inline Options options_of(const std::vector<std::string>& arguments) {
  Options options;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const auto value = [&]() -> const std::string& {
      if (i + 1 == arguments.size()) fail(argument, " needs a value");
      return arguments[++i];
    };
    if (argument == "--attribute") {
      const std::string& text = value();
      const std::size_t equals = text.find('=');
      if (equals == std::string::npos) fail("--attribute ", text, ": must be NAME=VALUE");
      options.attributes.emplace_back(text.substr(0, equals), text.substr(equals + 1));
    } else if (argument == "--input") {
      options.inputs.push_back(input_of(value()));
    } else if (argument == "--output") {
      const std::vector<std::string> parts = split(value(), ':');
      options.output = parts.at(0);
      if (parts.size() > 1) options.output_format = format_named(parts[1]);
    } else if (argument == "--tactic") {
      options.tactic = value();
    } else if (argument == "--formats") {
      options.formats = true;
    } else if (argument == "--graph") {
      options.graph = true;
    } else if (argument.rfind("--", 0) != 0 && options.library.empty()) {
      options.library = argument;
    } else if (argument.rfind("--", 0) != 0 && options.name.empty()) {
      options.name = argument;
    } else {
      fail("unknown argument ", argument);
    }
  }
  if (options.library.empty()) fail("which plugin library? fastervit-plugin-driver LIBRARY [OPERATOR ...]");
  return options;
}

}  // namespace fastervit::driver

#endif  // FASTERVIT_DRIVER_OPTIONS_H
