#include "plugin.h"

#include <algorithm>
#include <climits>
#include <cstdint>

#include "logging.h"

namespace fastervit::plugin {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr int kAlignment = 16;

// Whether a map lies in memory as (B, H, W, C). Of 16-bit types TensorRT has no such format but one that pads channels
// to a multiple of 8, which is the same where they are one.
bool is_BHWC(const PluginTensorDesc& map) {
  if (map.type == DataType::kFLOAT) return map.format == TensorFormat::kHWC;
  return map.format == TensorFormat::kHWC8 && map.dims.nbDims == 4 && map.dims.d[1] % 8 == 0;
}

// The tensors at one bound of their shapes: what is known stays, the rest comes from the bound.
std::vector<PluginTensorDesc> at(Dims DynamicPluginTensorDesc::* bound, const DynamicPluginTensorDesc* tensors,
                                 int count) {
  std::vector<PluginTensorDesc> result;
  for (int i = 0; i < count; ++i) {
    PluginTensorDesc desc = tensors[i].desc;
    const Dims& known = tensors[i].*bound;
    for (int axis = 0; axis < desc.dims.nbDims && known.nbDims == desc.dims.nbDims; ++axis) {
      if (desc.dims.d[axis] < 0) desc.dims.d[axis] = known.d[axis];
    }
    result.push_back(desc);
  }
  return result;
}

bool all_known(const std::vector<PluginTensorDesc>& tensors) {
  for (const PluginTensorDesc& tensor : tensors) {
    for (int axis = 0; axis < tensor.dims.nbDims; ++axis) {
      if (tensor.dims.d[axis] < 0) return false;
    }
  }
  return true;
}

bool is_aligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % kAlignment == 0; }

}  // namespace

int launcher_dtype(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return FASTERVIT_FLOAT32;
    case DataType::kHALF: return FASTERVIT_FLOAT16;
    case DataType::kBF16: return FASTERVIT_BFLOAT16;
    case DataType::kINT8: return FASTERVIT_INT8;
    default: return -1;
  }
}

Plugin::Plugin(const Contract& contract, const Attributes& attributes)
    : contract_(contract), attributes_(attributes), text_(attributes.text()) {
  cache_id_ = std::string(fastervit_version()) + " " + text_;  // another version's kernels have other timings
}

bool Plugin::takes(DataType type) const {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

DataType Plugin::type_of(int /*position*/, DataType first) const { return first; }

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

std::int32_t Plugin::getOutputDataTypes(DataType* outputs, std::int32_t output_count, const DataType* inputs,
                                        std::int32_t input_count) const noexcept {
  if (input_count < 1 || output_count != 1) return 1;
  outputs[0] = type_of(static_cast<int>(contract_.inputs.size()), inputs[0]);
  return 0;
}

std::int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                                     const nvinfer1::DimsExprs* /*shape_inputs*/, std::int32_t shape_input_count,
                                     nvinfer1::DimsExprs* outputs, std::int32_t output_count,
                                     nvinfer1::IExprBuilder& builder) noexcept {
  const int expected = static_cast<int>(contract_.inputs.size());
  if (input_count != expected || shape_input_count != 0 || output_count != 1) {
    log_error(refusal("%s: %d inputs and %d shape inputs, must be %d and 0", name(), input_count, shape_input_count,
                      expected));
    return 1;
  }
  for (int i = 0; i < input_count; ++i) {
    const Input& input = contract_.inputs[i];
    if (inputs[i].nbDims == input.rank) continue;
    log_error(refusal("%s: %s has %d axes, must have %d", name(), input.name, inputs[i].nbDims, input.rank));
    return 1;
  }
  const std::vector<Extent> extents = output(Extents(inputs, builder));
  outputs[0].nbDims = static_cast<std::int32_t>(extents.size());
  for (std::size_t axis = 0; axis < extents.size(); ++axis) {
    outputs[0].d[axis] = extents[axis].expression();
    if (outputs[0].d[axis] == nullptr) return 1;
  }
  return 0;
}

bool Plugin::supportsFormatCombination(std::int32_t position, const DynamicPluginTensorDesc* tensors,
                                       std::int32_t input_count, std::int32_t output_count) noexcept {
  const int inputs = static_cast<int>(contract_.inputs.size());
  if (input_count != inputs || output_count != 1 || position < 0 || position > inputs) return false;

  const PluginTensorDesc& tensor = tensors[position].desc;
  const bool is_map = position < inputs ? contract_.inputs[position].is_map : contract_.output_is_map;
  if (tensor.format != TensorFormat::kLINEAR && !(is_map && is_BHWC(tensor))) return false;
  if (is_map && position > 0 && contract_.inputs[0].is_map && tensor.format != tensors[0].desc.format) return false;
  if (position == 0 ? !takes(tensor.type) : tensor.type != type_of(position, tensors[0].desc.type)) return false;
  if (position < inputs) return true;

  // All types and formats fit: what remains is whether the launcher serves them, whatever the batch. An empty one fits.
  std::vector<PluginTensorDesc> descs = at(&DynamicPluginTensorDesc::opt, tensors, inputs);
  for (PluginTensorDesc& desc : descs) {
    if (desc.dims.nbDims > 0 && desc.dims.d[0] < 0) desc.dims.d[0] = 0;
  }
  if (!all_known(descs)) return true;  // configurePlugin will know
  const Tensors call{descs.data(), &tensor};
  const char* reason = wrong(call);
  // Channels last is an offer beside the linear format; it says what is wrong if it is refused as well.
  if (reason != nullptr && !is_channels_last(call)) warn_once(reason);
  return reason == nullptr;
}

std::int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                                     const DynamicPluginTensorDesc* outputs, std::int32_t /*output_count*/) noexcept {
  // Bounds are TensorRT's estimates and need not fit each other; what is tuned for must.
  tactics_.clear();
  const std::vector<PluginTensorDesc> descs = at(&DynamicPluginTensorDesc::opt, inputs, input_count);
  const Tensors call{descs.data(), &outputs[0].desc};
  const bool bounded = all_known(at(&DynamicPluginTensorDesc::max, inputs, input_count));
  const char* reason = bounded ? wrong(call) : refusal("%s: its inputs have no largest size", name());
  if (reason != nullptr) {
    log_error(reason);
    return 1;
  }
  tactics_ = served(call);
  return 0;
}

std::size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                                     const DynamicPluginTensorDesc* outputs,
                                     std::int32_t /*output_count*/) const noexcept {
  const std::vector<PluginTensorDesc> descs = at(&DynamicPluginTensorDesc::max, inputs, input_count);
  const Tensors call{descs.data(), &outputs[0].desc};
  std::size_t bytes = workspace(call, FASTERVIT_AUTOMATIC);
  for (int tactic : tactics_) bytes = std::max(bytes, workspace(call, tactic));
  return bytes;
}

std::int32_t Plugin::getValidTactics(std::int32_t* tactics, std::int32_t count) noexcept {
  if (count != getNbTactics()) return 1;
  std::copy(tactics_.begin(), tactics_.end(), tactics);
  return 0;
}

std::int32_t Plugin::setTactic(std::int32_t tactic) noexcept {
  const std::vector<int> known = competing();
  if (tactic != FASTERVIT_AUTOMATIC && std::find(known.begin(), known.end(), tactic) == known.end()) {
    log_error(
        refusal("%s: tactic %d is unknown; build the engine with this version of the plugin library", name(), tactic));
    return 1;
  }
  tactic_ = tactic;
  return 0;
}

std::int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, std::int32_t input_count,
                                   const PluginTensorDesc* outputs, std::int32_t output_count) noexcept {
  if (input_count != static_cast<int>(contract_.inputs.size()) || output_count != 1) return 1;
  const Tensors call{inputs, outputs};
  if (const char* reason = wrong(call)) {
    log_error(reason);
    return 1;
  }
  // An engine may run on another GPU than it was tuned on. The workspace is enough for all tactics.
  const char* reason = tactic_ == FASTERVIT_AUTOMATIC ? nullptr : unsupported(call, tactic_);
  if (reason != nullptr) {
    warn_once(refusal("%s; the engine was tuned for the %s kernel, taking another", reason, tactic_name(tactic_)));
    tactic_ = FASTERVIT_AUTOMATIC;
  }
  return 0;
}

std::int32_t Plugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs,
                             const void* const* inputs, void* const* outputs, void* workspace,
                             cudaStream_t stream) noexcept {
  const Tensors call{input_descs, output_descs};
  if (output_descs[0].dims.d[0] == 0) return 0;  // an empty batch; CUDA has no empty grids
  bool aligned = is_aligned(outputs[0]) && is_aligned(workspace);
  for (std::size_t i = 0; i < contract_.inputs.size(); ++i) aligned = aligned && is_aligned(inputs[i]);
  if (!aligned) {
    log_error(refusal("%s: a tensor is at an address that is no multiple of %d", name(), kAlignment));
    return 1;
  }
  const int error = launch(call, inputs, outputs[0], workspace, tactic_, stream);
  if (error != 0) log_error(refusal("%s: the launch failed with CUDA error %d", name(), error));
  return error;
}

bool Plugin::is_channels_last(const Tensors& tensors) const {
  const bool into_windows = contract_.inputs[0].is_map;
  if (!into_windows && !contract_.output_is_map) return false;
  return (into_windows ? tensors.inputs[0] : *tensors.output).format != TensorFormat::kLINEAR;
}

const char* Plugin::wrong(const Tensors& tensors) const {
  for (std::size_t i = 0; i < contract_.inputs.size(); ++i) {
    const Input& input = contract_.inputs[i];
    const Dims& dims = tensors.inputs[i].dims;
    if (dims.nbDims != input.rank) {
      return refusal("%s: %s has %d axes, must have %d", name(), input.name, dims.nbDims, input.rank);
    }
    for (int axis = 0; axis < dims.nbDims; ++axis) {
      const int least = axis == 0 ? 0 : 1;  // a batch may be empty
      if (dims.d[axis] >= least && dims.d[axis] <= INT_MAX) continue;
      return refusal("%s: axis %d of %s is %lld, must be %d to %d", name(), axis, input.name,
                     static_cast<long long>(dims.d[axis]), least, INT_MAX);
    }
  }
  const char* reason = mismatch(tensors);
  return reason != nullptr ? reason : unsupported(tensors, FASTERVIT_AUTOMATIC);
}

std::vector<int> Plugin::served(const Tensors& tensors) const {
  std::vector<int> tactics = competing();
  const auto refused = [&](int tactic) { return unsupported(tensors, tactic) != nullptr; };
  tactics.erase(std::remove_if(tactics.begin(), tactics.end(), refused), tactics.end());
  return tactics;
}

}  // namespace fastervit::plugin
