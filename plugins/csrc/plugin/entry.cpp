// What TensorRT finds here: getCreators and setLoggerFinder, which loadLibrary asks for; and, where the library is
// merely opened (dlopen, LD_PRELOAD, DeepStream's custom-lib-path), creators that have registered themselves.
#include <atomic>
#include <cstdint>
#include <vector>

#include "../carrier_attention/plugin.h"
#include "../common/types.h"
#include "../window_attention/plugin.h"
#include "../window_partition/plugin.h"
#include "../window_reverse/plugin.h"
#include "creator.h"
#include "logging.h"
#include "tensorrt.h"

namespace fastervit::plugin {
namespace {

using Creators = std::vector<nvinfer1::IPluginCreatorInterface*>;

// Never destroyed: a registry may outlive the static objects of this library.
const Creators& creators() {
  static const auto* const all = new Creators{
      new Creator(window_partition()),
      new Creator(window_partition_with_carriers()),
      new Creator(window_attention()),
      new Creator(fused_window_attention()),
      new Creator(carrier_attention()),
      new Creator(window_reverse()),
      new Creator(window_reverse_with_carriers()),
      new Creator(window_reverse_with_propagation()),
  };
  return *all;
}

// Registers the creators when the library is opened, and takes that back when someone asks for them: loadLibrary opens
// the library, asks, registers what it was given, and fails if it finds that registered already.
class Registration {
 public:
  Registration() : registry_(plugin_registry()) {
    nvinfer1::IPluginRegistry* registry = registry_;
    if (registry == nullptr) return;
    for (nvinfer1::IPluginCreatorInterface* creator : creators()) registry->registerCreator(*creator, kNamespace);
  }

  void take_back() {
    nvinfer1::IPluginRegistry* registry = registry_.exchange(nullptr);
    if (registry == nullptr) return;
    for (nvinfer1::IPluginCreatorInterface* creator : creators()) registry->deregisterCreator(*creator);
  }

 private:
  std::atomic<nvinfer1::IPluginRegistry*> registry_;
} registration;

}  // namespace
}  // namespace fastervit::plugin

extern "C" FASTERVIT_API nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  fastervit::plugin::registration.take_back();
  const auto& all = fastervit::plugin::creators();
  count = static_cast<std::int32_t>(all.size());
  return all.data();
}

extern "C" FASTERVIT_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  fastervit::plugin::set_logger_finder(finder);
}
