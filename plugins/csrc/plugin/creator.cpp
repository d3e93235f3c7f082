#include "creator.h"

#include <memory>

#include "logging.h"
#include "plugin.h"

namespace fastervit::plugin {

Creator::Creator(const Contract& contract) : contract_(contract) {
  for (const Attribute& attribute : contract.attributes) {
    const bool integer = attribute.kind == Attribute::kInteger;
    const auto type = integer ? nvinfer1::PluginFieldType::kINT32 : nvinfer1::PluginFieldType::kFLOAT32;
    fields_.emplace_back(attribute.name, nullptr, type, 1);
  }
  collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginV3* Creator::createPlugin(const char* /*name*/, const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase /*phase*/) noexcept {
  try {
    Attributes attributes;
    const char* reason = attributes.read(contract_, fields);
    std::unique_ptr<Plugin> plugin;
    if (reason == nullptr) {
      plugin.reset(contract_.make(contract_, attributes));
      reason = plugin->inconsistent();
    }
    if (reason == nullptr) return plugin.release();
    log_error(reason);
  } catch (...) {
    log_error("no memory for a plugin");
  }
  return nullptr;
}

}  // namespace fastervit::plugin
