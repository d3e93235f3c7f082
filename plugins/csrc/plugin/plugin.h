// The part of a TensorRT plugin that is the same for every operator. An operator adds what it takes (its Contract),
// shapes, which cases its launcher serves, and the call of the launcher.
#ifndef FASTERVIT_PLUGIN_PLUGIN_H
#define FASTERVIT_PLUGIN_PLUGIN_H

#include <NvInferRuntime.h>

#include <cstddef>
#include <string>
#include <vector>

#include "../common/refusal.h"
#include "../common/types.h"
#include "contract.h"

namespace fastervit::plugin {

// Of a launcher; -1 for types that no launcher knows.
int launcher_dtype(nvinfer1::DataType type);

// The tensors of one call.
struct Tensors {
  const nvinfer1::PluginTensorDesc* inputs;
  const nvinfer1::PluginTensorDesc* output;

  int size(int input, int axis) const { return static_cast<int>(inputs[input].dims.d[axis]); }
  int dtype() const { return launcher_dtype(inputs[0].type); }
};

// A dimension that may be known only at run time, with the arithmetic of output shapes.
class Extent {
 public:
  Extent(nvinfer1::IExprBuilder& builder, const nvinfer1::IDimensionExpr* expression)
      : builder_(&builder), expression_(expression) {}
  Extent operator*(Extent other) const { return combined(nvinfer1::DimensionOperation::kPROD, other.expression_); }
  Extent operator*(int factor) const {
    return combined(nvinfer1::DimensionOperation::kPROD, builder_->constant(factor));
  }
  Extent operator/(int divisor) const {
    return combined(nvinfer1::DimensionOperation::kFLOOR_DIV, builder_->constant(divisor));
  }
  const nvinfer1::IDimensionExpr* expression() const { return expression_; }

 private:
  Extent combined(nvinfer1::DimensionOperation operation, const nvinfer1::IDimensionExpr* other) const {
    return {*builder_, builder_->operation(operation, *expression_, *other)};
  }
  nvinfer1::IExprBuilder* builder_;
  const nvinfer1::IDimensionExpr* expression_;
};

class Extents {
 public:
  Extents(const nvinfer1::DimsExprs* inputs, nvinfer1::IExprBuilder& builder) : inputs_(inputs), builder_(builder) {}
  Extent size(int input, int axis) const { return {builder_, inputs_[input].d[axis]}; }
  Extent constant(int value) const { return {builder_, builder_.constant(value)}; }

 private:
  const nvinfer1::DimsExprs* inputs_;
  nvinfer1::IExprBuilder& builder_;
};

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  // `contract` lives as long as the library.
  Plugin(const Contract& contract, const Attributes& attributes);

  // What an operator adds. Messages are one line, name the operator, and are null where all is well.

  // What is wrong with the attributes together; each by itself lies within its range.
  virtual const char* inconsistent() const { return nullptr; }
  virtual std::vector<Extent> output(const Extents& inputs) const = 0;
  // Which type the first input may have, and which type tensor `position` then has.
  virtual bool takes(nvinfer1::DataType type) const;
  virtual nvinfer1::DataType type_of(int position, nvinfer1::DataType first) const;
  // What is wrong with the shapes of the inputs, whose ranks are right and whose sizes are positive (of a batch: or 0).
  virtual const char* mismatch(const Tensors& tensors) const = 0;
  // Why the launcher does not serve inputs whose shapes fit.
  virtual const char* unsupported(const Tensors& tensors, int tactic) const = 0;
  // Kernels that compete for being fastest, as tactics of the launcher.
  virtual std::vector<int> competing() const { return {}; }
  virtual std::size_t workspace(const Tensors&, int /*tactic*/) const { return 0; }
  // Returns a cudaError_t.
  virtual int launch(const Tensors& tensors, const void* const* inputs, void* output, void* workspace, int tactic,
                     void* stream) const = 0;

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override { return contract_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  // IPluginV3OneBuild
  std::int32_t getNbOutputs() const noexcept override { return 1; }
  std::int32_t getOutputDataTypes(nvinfer1::DataType* outputs, std::int32_t output_count,
                                  const nvinfer1::DataType* inputs, std::int32_t input_count) const noexcept override;
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                               const nvinfer1::DimsExprs* shape_inputs, std::int32_t shape_input_count,
                               nvinfer1::DimsExprs* outputs, std::int32_t output_count,
                               nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 std::int32_t input_count, std::int32_t output_count) noexcept override;
  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t output_count) noexcept override;
  std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t output_count) const noexcept override;
  std::int32_t getNbTactics() noexcept override { return static_cast<std::int32_t>(tactics_.size()); }
  std::int32_t getValidTactics(std::int32_t* tactics, std::int32_t count) noexcept override;
  const char* getTimingCacheID() noexcept override { return cache_id_.c_str(); }
  const char* getMetadataString() noexcept override { return text_.c_str(); }

  // IPluginV3OneRuntime
  std::int32_t setTactic(std::int32_t tactic) noexcept override;
  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t input_count,
                             const nvinfer1::PluginTensorDesc* outputs, std::int32_t output_count) noexcept override;
  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
                       const void* const* inputs, void* const* outputs, void* workspace,
                       cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return attributes_.fields(); }

 protected:
  const char* name() const { return contract_.name; }
  const Input& input(int index) const { return contract_.inputs[static_cast<std::size_t>(index)]; }
  // Whether the map that is read or written lies in memory as (B, H, W, C).
  bool is_channels_last(const Tensors& tensors) const;

 private:
  const char* wrong(const Tensors& tensors) const;
  std::vector<int> served(const Tensors& tensors) const;  // of the competing tactics

  const Contract& contract_;
  Attributes attributes_;
  std::string text_;
  std::string cache_id_;
  std::vector<int> tactics_;  // valid for what configurePlugin saw last
  int tactic_ = FASTERVIT_AUTOMATIC;
};

template <typename Operator>
class PluginOf : public Plugin {
 public:
  using Plugin::Plugin;
  nvinfer1::IPluginV3* clone() noexcept override {
    try {
      return new Operator(static_cast<const Operator&>(*this));
    } catch (...) {
      return nullptr;  // out of memory
    }
  }
};

template <typename Operator>
Plugin* make(const Contract& contract, const Attributes& attributes) {
  return new Operator(contract, attributes);
}

}  // namespace fastervit::plugin

#endif  // FASTERVIT_PLUGIN_PLUGIN_H
