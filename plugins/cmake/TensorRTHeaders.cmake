# Looks for TensorRT's headers where FindTensorRT does, else gets them if asked to; TensorRT_FOUND says whether there are any.
option(FASTERVIT_TRT_REQUIRE_PLUGINS "Fail where there are no headers, instead of leaving the plugins out" OFF)
option(FASTERVIT_TRT_FETCH_TENSORRT "Get TensorRT's headers from NVIDIA's repository if there are none here" OFF)
set(FASTERVIT_TRT_TENSORRT_TAG "v11.1" CACHE STRING "Release whose headers are fetched: that of the TensorRT in use")
set(FASTERVIT_TRT_TENSORRT_REPOSITORY "https://github.com/NVIDIA/TensorRT" CACHE STRING "Where they are fetched from")

find_package(TensorRT 10.0 QUIET) # IPluginV3

if(NOT TensorRT_FOUND AND FASTERVIT_TRT_FETCH_TENSORRT)
  # Of its many gigabytes only the headers.
  include(FetchContent)
  FetchContent_Declare(tensorrt
    DOWNLOAD_COMMAND git clone --quiet --depth 1 --filter=blob:none --no-checkout --branch "${FASTERVIT_TRT_TENSORRT_TAG}"
                     "${FASTERVIT_TRT_TENSORRT_REPOSITORY}" <SOURCE_DIR>
    COMMAND git -C <SOURCE_DIR> sparse-checkout set include
    COMMAND git -C <SOURCE_DIR> checkout --quiet
    SOURCE_SUBDIR include) # no CMakeLists.txt there: nothing of it is built
  FetchContent_MakeAvailable(tensorrt)
  set(TENSORRT_ROOT "${tensorrt_SOURCE_DIR}")
  find_package(TensorRT 10.0 REQUIRED)
endif()

if(TensorRT_FOUND)
  message(STATUS "TensorRT ${TensorRT_VERSION} headers: ${TensorRT_INCLUDE_DIR}")
else()
  set(found "No TensorRT headers")
  if(TensorRT_INCLUDE_DIR)
    set(found "TensorRT ${TensorRT_VERSION} headers in ${TensorRT_INCLUDE_DIR} are too old")
  endif()
  set(remedy "set TENSORRT_ROOT to a folder with include/NvInfer.h of TensorRT 10.0 or later, or "
             "-DFASTERVIT_TRT_FETCH_TENSORRT=ON")
  list(JOIN remedy "" remedy)
  if(FASTERVIT_TRT_REQUIRE_PLUGINS)
    message(FATAL_ERROR "${found}: no plugins without them. Install those of the TensorRT in use (Jetson: sudo apt install "
                        "nvidia-jetpack; elsewhere libnvinfer-headers-dev of NVIDIA's repository), ${remedy}")
  endif()
  message(STATUS "${found}: building the kernels, leaving out the TensorRT plugins. To have them, ${remedy}")
endif()
