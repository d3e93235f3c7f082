// What of TensorRT is in this process. The library is loaded by TensorRT and links none of it.
#ifndef FASTERVIT_PLUGIN_TENSORRT_H
#define FASTERVIT_PLUGIN_TENSORRT_H

#include <NvInferRuntime.h>

namespace fastervit::plugin {

// The plugin registry of a TensorRT of the major version whose headers this was compiled with, or null. Others are
// passed over: virtual functions of the registry and of the logger changed places between TensorRT 10 and 11.
nvinfer1::IPluginRegistry* plugin_registry();

// The logger of the same TensorRT, or null.
nvinfer1::ILogger* global_logger();

// Major version of the TensorRT that made `object`, told by where its virtual functions are; 0: no TensorRT did.
int tensorrt_major_of(const void* object);

}  // namespace fastervit::plugin

#endif  // FASTERVIT_PLUGIN_TENSORRT_H
