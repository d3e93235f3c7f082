// Runs one operator of a plugin library through TensorRT's public interface, in the order in which TensorRT does, without
// TensorRT: creator, plugin, output shape, formats, tactics, serialised fields, plugin of the run-time phase, enqueue.
//
//   fastervit-plugin-driver LIBRARY                            what the library has
//   fastervit-plugin-driver LIBRARY OPERATOR [--attribute NAME=VALUE]... --input FILE:TYPE:SHAPE[:FORMAT]...
//                           [--output FILE[:FORMAT]] [--tactic NUMBER|all] [--formats] [--graph]
//
//   --attribute  an integer or, with a point or an exponent, a float
//   --input      raw elements as they lie in memory, "-" where nothing is run. TYPE is fp32, fp16, bf16 or int8. SHAPE is
//                such as 2x64x14x14; a dimension that is known only at run time is 2? or, being 8 at most, 2?8. FORMAT is
//                linear (default), hwc or hwc8.
//   --output     where the result goes; without it nothing is run. Of several tactics: FILE.NUMBER
//   --formats    also every combination of types and formats that the plugin takes
//   --graph      captured into a CUDA graph, and launched from there
//
// Answers in JSON; an error is one line, and exit code 2.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"

namespace fastervit::driver {
namespace {

using nvinfer1::DataType;
using nvinfer1::TensorFormat;

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// ---------------------------------------------------------------------------------------------- what TensorRT gives

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

// A dimension as its formula and its value for the shapes given. TensorRT's own classes forward to what mImpl points to.
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

// ------------------------------------------------------------------------------------------------------- the command

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

TypeName type_named(const std::string& name) {
  for (const TypeName& type : kTypes) {
    if (name == type.name) return type;
  }
  fail("'", name, "' is no type: fp32, fp16, bf16, int8");
}

TypeName type_of(DataType value) {
  for (const TypeName& type : kTypes) {
    if (value == type.type) return type;
  }
  fail("the plugin gives a tensor of type ", static_cast<int>(value));
}

TensorFormat format_named(const std::string& name) {
  for (const FormatName& format : kFormats) {
    if (name == format.name) return format.format;
  }
  fail("'", name, "' is no format: linear, hwc, hwc8");
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

std::int64_t number(const std::string& text) {
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

Tensor input_of(const std::string& text) {
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

Options options_of(const std::vector<std::string>& arguments) {
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

// ------------------------------------------------------------------------------------------------------- the library

// Fields that own their data, as TensorRT hands them to a creator.
class Fields {
 public:
  void add(const std::string& name, const std::string& value) {
    const bool integer = value.find_first_of(".eE") == std::string::npos;
    if (integer) {
      const auto number = static_cast<std::int32_t>(std::stol(value));
      add(name, nvinfer1::PluginFieldType::kINT32, &number, sizeof number, 1);
    } else {
      const float number = std::stof(value);
      add(name, nvinfer1::PluginFieldType::kFLOAT32, &number, sizeof number, 1);
    }
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

using Creator = nvinfer1::IPluginCreatorV3One;

std::vector<Creator*> creators_of(const std::string& path, nvinfer1::ILoggerFinder& finder) {
  void* library = dlopen(path.c_str(), kOpenMode);
  if (library == nullptr) fail(dlerror());
  const auto set_finder = reinterpret_cast<void (*)(nvinfer1::ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  const auto get =
      reinterpret_cast<nvinfer1::IPluginCreatorInterface* const* (*)(std::int32_t&)>(dlsym(library, "getCreators"));
  if (set_finder == nullptr || get == nullptr)
    fail(path, " is no plugin library: it lacks getCreators or setLoggerFinder");
  set_finder(&finder);
  std::int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* all = get(count);
  std::vector<Creator*> creators;
  for (std::int32_t i = 0; i < count; ++i) {
    if (std::string(all[i]->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE") {
      creators.push_back(static_cast<Creator*>(all[i]));
    }
  }
  return creators;
}

void print_creators(const std::vector<Creator*>& creators) {
  for (std::size_t i = 0; i < creators.size(); ++i) {
    Creator& creator = *creators[i];
    std::printf("%s{\"name\": \"%s\", \"version\": \"%s\", \"namespace\": \"%s\", \"attributes\": [",
                i == 0 ? "[" : ",\n ", creator.getPluginName(), creator.getPluginVersion(),
                creator.getPluginNamespace());
    const nvinfer1::PluginFieldCollection* fields = creator.getFieldNames();
    for (std::int32_t f = 0; f < fields->nbFields; ++f) {
      std::printf("%s\"%s\"", f == 0 ? "" : ", ", fields->fields[f].name);
    }
    std::printf("]}");
  }
  std::printf("]\n");
}

// A plugin with its capabilities.
struct Plugin {
  std::unique_ptr<nvinfer1::IPluginV3> object;
  nvinfer1::IPluginV3OneCore* core;
  nvinfer1::IPluginV3OneBuild* build;
  nvinfer1::IPluginV3OneRuntime* runtime;

  explicit Plugin(nvinfer1::IPluginV3* plugin, const char* what) : object(plugin) {
    if (plugin == nullptr) fail(what, " gave no plugin");
    using nvinfer1::PluginCapabilityType;
    core = static_cast<nvinfer1::IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
    build = static_cast<nvinfer1::IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    runtime =
        static_cast<nvinfer1::IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    if (core == nullptr || build == nullptr || runtime == nullptr) fail(what, ": the plugin lacks a capability");
  }
};

Plugin created(Creator& creator, const Fields& fields, nvinfer1::TensorRTPhase phase) {
  const nvinfer1::PluginFieldCollection collection = fields.collection();
  return Plugin(creator.createPlugin("layer", &collection, phase), "createPlugin");
}

// ---------------------------------------------------------------------------------------------------------- its steps

// Type and shape of the output; returns the formulas of its dimensions.
std::vector<std::string> infer_output(nvinfer1::IPluginV3OneBuild& build, const std::vector<Tensor>& inputs,
                                      Tensor& output) {
  const auto count = static_cast<std::int32_t>(inputs.size());
  if (build.getNbOutputs() != 1) fail("the plugin has ", build.getNbOutputs(), " outputs, this driver serves 1");
  std::vector<DataType> types;
  std::vector<nvinfer1::DimsExprs> shapes;
  Expressions expressions;
  for (std::int32_t i = 0; i < count; ++i) {
    const Tensor& input = inputs[static_cast<std::size_t>(i)];
    types.push_back(input.desc.desc.type);
    nvinfer1::DimsExprs& shape = shapes.emplace_back();
    shape.nbDims = input.dims.nbDims;
    for (int axis = 0; axis < shape.nbDims; ++axis) {
      const bool constant = input.desc.desc.dims.d[axis] >= 0;
      const std::string name = "i" + std::to_string(i) + "[" + std::to_string(axis) + "]";
      shape.d[axis] =
          expressions.add(constant ? std::to_string(input.dims.d[axis]) : name, input.dims.d[axis], constant);
    }
  }
  if (build.getOutputDataTypes(&output.desc.desc.type, 1, types.data(), count) != 0) fail("getOutputDataTypes failed");
  nvinfer1::DimsExprs shape{};
  if (build.getOutputShapes(shapes.data(), count, nullptr, 0, &shape, 1, expressions) != 0)
    fail("getOutputShapes failed");

  std::vector<std::string> formulas;
  output.dims.nbDims = output.desc.desc.dims.nbDims = shape.nbDims;
  for (int axis = 0; axis < shape.nbDims; ++axis) {
    const auto& dimension = static_cast<const Dimension&>(*shape.d[axis]);
    output.dims.d[axis] = dimension.value;
    output.desc.desc.dims.d[axis] = dimension.constant ? dimension.value : -1;
    formulas.push_back(dimension.formula);
  }
  output.desc.min = output.desc.opt = output.desc.max = output.dims;
  return formulas;
}

// Every combination that the plugin takes, position by position as TensorRT asks; the types of positions not asked yet mean
// nothing.
void collect_formats(nvinfer1::IPluginV3OneBuild& build, std::vector<nvinfer1::DynamicPluginTensorDesc> tensors,
                     std::size_t position, const std::string& so_far, std::vector<std::string>& found) {
  if (position == tensors.size()) {
    found.push_back(so_far);
    return;
  }
  for (const TypeName& type : kTypes) {
    for (const FormatName& format : kFormats) {
      tensors[position].desc.type = type.type;
      tensors[position].desc.format = format.format;
      if (build.supportsFormatCombination(static_cast<std::int32_t>(position), tensors.data(),
                                          static_cast<std::int32_t>(tensors.size()) - 1, 1)) {
        const std::string name = std::string(type.name) + ":" + format.name;
        collect_formats(build, tensors, position + 1, so_far + (position == 0 ? "" : " ") + name, found);
      }
    }
  }
}

Bytes read_file(const Tensor& tensor) {
  std::ifstream file(tensor.file, std::ios::binary);
  if (!file) fail("cannot read ", tensor.file);
  Bytes data{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (data.size() != tensor.bytes())
    fail(tensor.file, " has ", data.size(), " bytes, its shape asks for ", tensor.bytes());
  return data;
}

// Runs one tactic on a plugin of the run-time phase and writes what comes out.
void execute(Plugin& plugin, const Options& options, const Tensor& output, int tactic, std::size_t workspace_bytes,
             const std::string& file) {
  if (plugin.runtime->setTactic(tactic) != 0) fail("setTactic(", tactic, ") failed");
  const Plugin attached(plugin.runtime->attachToContext(nullptr), "attachToContext");

  std::vector<nvinfer1::PluginTensorDesc> descs;
  std::vector<std::unique_ptr<Memory>> memory;
  std::vector<const void*> addresses;
  for (const Tensor& input : options.inputs) {
    descs.push_back(input.concrete());
    memory.push_back(std::make_unique<Memory>(input.bytes()));
    memory.back()->write(read_file(input));
    addresses.push_back(memory.back()->address());
  }
  const nvinfer1::PluginTensorDesc output_desc = output.concrete();
  const auto count = static_cast<std::int32_t>(descs.size());
  if (attached.runtime->onShapeChange(descs.data(), count, &output_desc, 1) != 0) fail("onShapeChange failed");

  Memory result(output.bytes()), workspace(workspace_bytes);
  void* results[] = {result.address()};
  const auto poison = [&] {
    result.poison();
    workspace.poison();
  };
  poison();
  run(
      [&](cudaStream_t stream) {
        return attached.runtime->enqueue(descs.data(), &output_desc, addresses.data(), results, workspace.address(),
                                         stream);
      },
      options.graph, poison);
  workspace.read();  // looks behind its end
  const Bytes data = result.read();
  std::ofstream stream(file, std::ios::binary);
  stream.write(reinterpret_cast<const char*>(data.data()), static_cast<std::streamsize>(data.size()));
  if (!stream.flush()) fail("cannot write ", file);
}

template <typename Items, typename Write>
std::string json_list(const Items& items, Write write) {
  std::ostringstream text;
  for (const auto& item : items) {
    text << (text.tellp() > 0 ? ", " : "");
    write(text, item);
  }
  return "[" + text.str() + "]";
}

void drive(Creator& creator, const Options& options) {
  Fields attributes;
  for (const auto& [name, value] : options.attributes) attributes.add(name, value);
  const Plugin plugin = created(creator, attributes, nvinfer1::TensorRTPhase::kBUILD);

  Tensor output;
  output.desc.desc.format = options.output_format;
  output.desc.desc.scale = -1.0f;
  const std::vector<std::string> formulas = infer_output(*plugin.build, options.inputs, output);

  std::vector<nvinfer1::DynamicPluginTensorDesc> descs;
  for (const Tensor& input : options.inputs) descs.push_back(input.desc);
  descs.push_back(output.desc);
  std::vector<std::string> formats;
  if (options.formats) {
    std::vector<nvinfer1::DynamicPluginTensorDesc> unasked = descs;
    for (auto& desc : unasked) desc.desc.type = DataType::kBOOL;
    collect_formats(*plugin.build, unasked, 0, "", formats);
  }
  const auto inputs = static_cast<std::int32_t>(descs.size()) - 1;
  for (std::int32_t position = 0; position <= inputs; ++position) {
    if (!plugin.build->supportsFormatCombination(position, descs.data(), inputs, 1)) {
      fail(options.name, " does not take these types and formats: refused tensor ", position);
    }
  }
  if (plugin.build->configurePlugin(descs.data(), inputs, &descs.back(), 1) != 0) fail("configurePlugin failed");
  const std::size_t workspace = plugin.build->getWorkspaceSize(descs.data(), inputs, &descs.back(), 1);
  std::vector<std::int32_t> tactics(static_cast<std::size_t>(plugin.build->getNbTactics()));
  if (plugin.build->getValidTactics(tactics.data(), static_cast<std::int32_t>(tactics.size())) != 0) {
    fail("getValidTactics failed");
  }

  // Into a plan and out of it.
  Fields serialized;
  const nvinfer1::PluginFieldCollection* fields = plugin.runtime->getFieldsToSerialize();
  for (std::int32_t i = 0; i < fields->nbFields; ++i) serialized.add(fields->fields[i]);
  Plugin deserialized = created(creator, serialized, nvinfer1::TensorRTPhase::kRUNTIME);

  std::vector<std::int32_t> ran;
  if (!options.output.empty()) {
    const bool all = options.tactic == "all";
    if (all) ran = tactics;
    if (!all) ran = {options.tactic.empty() ? 0 : static_cast<std::int32_t>(number(options.tactic))};
    for (const std::int32_t tactic : ran) {
      const std::string file = all ? options.output + "." + std::to_string(tactic) : options.output;
      execute(deserialized, options, output, tactic, workspace, file);
    }
  }

  const auto quoted = [](std::ostream& to, const std::string& text) { to << '"' << text << '"'; };
  const auto plain = [](std::ostream& to, std::int64_t value) { to << value; };
  const std::vector<std::int64_t> shape(output.dims.d, output.dims.d + output.dims.nbDims);
  std::printf("{\"type\": \"%s\", \"shape\": %s, \"formulas\": %s, \"workspace\": %zu, \"tactics\": %s, \"ran\": %s,\n",
              type_of(output.desc.desc.type).name, json_list(shape, plain).c_str(), json_list(formulas, quoted).c_str(),
              workspace, json_list(tactics, plain).c_str(), json_list(ran, plain).c_str());
  std::printf(" \"fields\": %s, \"timing_cache_id\": \"%s\", \"formats\": %s}\n", serialized.json().c_str(),
              plugin.build->getTimingCacheID(), json_list(formats, quoted).c_str());
}

int run_command(const std::vector<std::string>& arguments) {
  const Options options = options_of(arguments);
  static LoggerFinder finder;  // the library keeps it
  const std::vector<Creator*> creators = creators_of(options.library, finder);
  if (options.name.empty()) {
    print_creators(creators);
    return 0;
  }
  for (Creator* creator : creators) {
    if (options.name == creator->getPluginName()) {
      drive(*creator, options);
      return 0;
    }
  }
  fail(options.library, " has no operator ", options.name, "; without an operator this lists what it has");
}

}  // namespace
}  // namespace fastervit::driver

int main(int count, char** arguments) {
  try {
    return fastervit::driver::run_command(std::vector<std::string>(arguments + 1, arguments + count));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
