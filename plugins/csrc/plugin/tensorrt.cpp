#include "tensorrt.h"

#include <dlfcn.h>

#include <cstdio>
#include <initializer_list>

namespace fastervit::plugin {
namespace {

int major_of(void* library) {
  const auto version = reinterpret_cast<int (*)()>(dlsym(library, "getInferLibVersion"));
  return version == nullptr ? 0 : version() / 10000;  // 10.3.0 is 100300, and TensorRT-RTX 1.7.1 is 10701
}

// A function of the TensorRT that is loaded already, of our major version. Python and servers load TensorRT apart from
// the global scope, where only its name finds it.
void* function(const char* name) {
  if (major_of(RTLD_DEFAULT) == NV_TENSORRT_MAJOR) return dlsym(RTLD_DEFAULT, name);
  for (const char* library : {"nvinfer", "nvinfer_lean", "nvinfer_dispatch"}) {
    char file[64];
    std::snprintf(file, sizeof file, "lib%s.so.%d", library, NV_TENSORRT_MAJOR);
    void* handle = dlopen(file, RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) continue;
    void* found = major_of(handle) == NV_TENSORRT_MAJOR ? dlsym(handle, name) : nullptr;
    dlclose(handle);
    if (found != nullptr) return found;
  }
  return nullptr;
}

}  // namespace

nvinfer1::IPluginRegistry* plugin_registry() {
  const auto get = reinterpret_cast<decltype(&getPluginRegistry)>(function("getPluginRegistry"));
  return get == nullptr ? nullptr : get();
}

nvinfer1::ILogger* global_logger() {
  const auto get = reinterpret_cast<decltype(&getLogger)>(function("getLogger"));
  return get == nullptr ? nullptr : get();
}

int tensorrt_major_of(const void* object) {
  Dl_info where;
  const void* virtual_functions = *static_cast<const void* const*>(object);
  if (dladdr(virtual_functions, &where) == 0) return 0;
  void* library = dlopen(where.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return 0;
  const int major = major_of(library);
  dlclose(library);
  return major;
}

}  // namespace fastervit::plugin
