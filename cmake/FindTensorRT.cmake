# Finds TensorRT's C++ headers below TENSORRT_ROOT (CMake or environment variable) or the usual system folders.
# Defines TensorRT_FOUND, TensorRT_VERSION and the header-only target TensorRT::headers. Plugins are loaded by TensorRT
# and get their services from it, so there is nothing to link against.
find_path(TensorRT_INCLUDE_DIR NvInfer.h HINTS "${TENSORRT_ROOT}" "$ENV{TENSORRT_ROOT}" PATH_SUFFIXES include)

if(TensorRT_INCLUDE_DIR)
  file(STRINGS "${TensorRT_INCLUDE_DIR}/NvInferVersion.h" lines REGEX "^#define (NV_TENSORRT|TRT)_(MAJOR|MINOR|PATCH)[A-Z_]* [0-9]+")
  foreach(part MAJOR MINOR PATCH)
    string(REGEX MATCH "_${part}[A-Z_]* ([0-9]+)" found "${lines}")
    list(APPEND parts "${CMAKE_MATCH_1}")
  endforeach()
  list(JOIN parts "." TensorRT_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT REQUIRED_VARS TensorRT_INCLUDE_DIR VERSION_VAR TensorRT_VERSION)

if(TensorRT_FOUND AND NOT TARGET TensorRT::headers)
  add_library(TensorRT::headers INTERFACE IMPORTED)
  target_include_directories(TensorRT::headers SYSTEM INTERFACE "${TensorRT_INCLUDE_DIR}")
endif()
