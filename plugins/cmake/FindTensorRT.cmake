# Finds TensorRT's C++ headers below TENSORRT_ROOT (CMake or environment variable), else in the usual system folders.
# Defines TensorRT_FOUND, TensorRT_VERSION and the header-only target TensorRT::headers. Plugins are loaded by TensorRT
# and get their services from it, so there is nothing to link against.
set(root "${TENSORRT_ROOT}")
if(NOT root)
  set(root "$ENV{TENSORRT_ROOT}")
endif()
set(suffixes include "include/${CMAKE_LIBRARY_ARCHITECTURE}")
if(root)
  unset(TensorRT_INCLUDE_DIR CACHE) # of an earlier run, with another root
  find_path(TensorRT_INCLUDE_DIR NvInfer.h PATHS "${root}" PATH_SUFFIXES ${suffixes} NO_DEFAULT_PATH)
  if(NOT TensorRT_INCLUDE_DIR)
    message(FATAL_ERROR "TENSORRT_ROOT is ${root}, which has no include/NvInfer.h; name the folder above include, or unset it")
  endif()
else()
  find_path(TensorRT_INCLUDE_DIR NvInfer.h PATH_SUFFIXES ${suffixes})
endif()

if(TensorRT_INCLUDE_DIR)
  file(STRINGS "${TensorRT_INCLUDE_DIR}/NvInferVersion.h" lines REGEX "^#define (NV_TENSORRT|TRT)_(MAJOR|MINOR|PATCH)[A-Z_]* [0-9]+")
  set(parts "")
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
