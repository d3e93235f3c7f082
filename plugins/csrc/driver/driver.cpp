// Runs one operator of a plugin library through TensorRT's public interface, in the order in which TensorRT does, but
// without it: creator, plugin, output shape, formats, tactics, serialised fields, the plugin of the run-time phase,
// enqueue.
//
//   fastervit-plugin-driver LIBRARY                            what the library has
//   fastervit-plugin-driver LIBRARY OPERATOR [--attribute NAME=VALUE]... --input FILE:TYPE:SHAPE[:FORMAT]...
//                           [--output FILE[:FORMAT]] [--tactic NUMBER|all] [--formats] [--graph]
//
//   --attribute  an integer or, with a point or an exponent, a float
//   --input      raw elements as they lie in memory, "-" where nothing is run. TYPE is fp32, fp16, bf16 or int8.
//                SHAPE is such as 2x64x14x14; a dimension that is known only at run time is 2? or, being 8 at most,
//                2?8. FORMAT is linear (default), hwc or hwc8.
//   --output     where the result goes; without it nothing is run. Of several tactics: FILE.NUMBER
//   --formats    also every combination of types and formats that the plugin takes
//   --graph      captured into a CUDA graph, and launched from there
//
// Answers in JSON; an error is one line, and exit code 2.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "device.h"
#include "options.h"
#include "tensorrt.h"

namespace fastervit::driver {
namespace {

using Creator = nvinfer1::IPluginCreatorV3One;

std::vector<Creator*> creators_of(const std::string& path, nvinfer1::ILoggerFinder& finder) {
  void* library = dlopen(path.c_str(), kOpenMode);
  if (library == nullptr) fail(dlerror());
  const auto set_finder = reinterpret_cast<void (*)(nvinfer1::ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  const auto get =
      reinterpret_cast<nvinfer1::IPluginCreatorInterface* const* (*)(std::int32_t&)>(dlsym(library, "getCreators"));
  if (set_finder == nullptr || get == nullptr) {
    fail(path, " is no plugin library: it lacks getCreators or setLoggerFinder");
  }
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
  if (build.getOutputShapes(shapes.data(), count, nullptr, 0, &shape, 1, expressions) != 0) {
    fail("getOutputShapes failed");
  }

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

// Every combination that the plugin takes, position by position as TensorRT asks; the types of positions not asked yet
// mean nothing.
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
  if (data.size() != tensor.bytes()) {
    fail(tensor.file, " has ", data.size(), " bytes, its shape asks for ", tensor.bytes());
  }
  return data;
}

// Runs one tactic on a plugin of the run-time phase and writes what comes out. Returns whether it used the workspace.
bool execute(Plugin& plugin, const Options& options, const Tensor& output, int tactic, std::size_t workspace_bytes,
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
  const Bytes scratch = workspace.read();  // which looks behind its end
  const Bytes data = result.read();
  std::ofstream stream(file, std::ios::binary);
  stream.write(reinterpret_cast<const char*>(data.data()), static_cast<std::streamsize>(data.size()));
  if (!stream.flush()) fail("cannot write ", file);
  return std::any_of(scratch.begin(), scratch.end(), [](unsigned char byte) { return byte != kPoison; });
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
  // Formats are asked for while bounds may be unknown.
  std::vector<nvinfer1::DynamicPluginTensorDesc> unbounded = descs;
  for (auto& desc : unbounded) desc.min = desc.opt = desc.max = desc.desc.dims;
  std::vector<std::string> formats;
  if (options.formats) {
    std::vector<nvinfer1::DynamicPluginTensorDesc> unasked = unbounded;
    for (auto& desc : unasked) desc.desc.type = DataType::kBOOL;
    collect_formats(*plugin.build, unasked, 0, "", formats);
  }
  const auto inputs = static_cast<std::int32_t>(descs.size()) - 1;
  for (std::int32_t position = 0; position <= inputs; ++position) {
    if (!plugin.build->supportsFormatCombination(position, unbounded.data(), inputs, 1)) {
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

  std::vector<std::string> ran;
  if (!options.output.empty()) {
    const bool all = options.tactic == "all";
    const std::int32_t chosen = all || options.tactic.empty() ? 0 : static_cast<std::int32_t>(number(options.tactic));
    for (const std::int32_t tactic : all ? tactics : std::vector<std::int32_t>{chosen}) {
      const std::string file = all ? options.output + "." + std::to_string(tactic) : options.output;
      const bool used = execute(deserialized, options, output, tactic, workspace, file);
      ran.push_back("{\"tactic\": " + std::to_string(tactic) + ", \"workspace_used\": " + (used ? "true}" : "false}"));
    }
  }

  const auto quoted = [](std::ostream& to, const std::string& text) { to << '"' << text << '"'; };
  const auto plain = [](std::ostream& to, const auto& value) { to << value; };
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
