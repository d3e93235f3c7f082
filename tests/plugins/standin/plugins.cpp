// A plugin library without plugins: what TensorRT asks for when it loads one.
#include <NvInferRuntime.h>

#include <cstdint>

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const none[] = {nullptr};
  count = 0;
  return none;
}
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
