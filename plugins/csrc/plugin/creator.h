// Makes the plugin of one operator from the attributes of its node.
#ifndef FASTERVIT_PLUGIN_CREATOR_H
#define FASTERVIT_PLUGIN_CREATOR_H

#include <vector>

#include "contract.h"

namespace fastervit::plugin {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Contract& contract);
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return contract_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  const Contract& contract_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace fastervit::plugin

#endif  // FASTERVIT_PLUGIN_CREATOR_H
