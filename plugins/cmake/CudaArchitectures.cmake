# Enables CUDA for the GPUs in FASTERVIT_TRT_CUDA_ARCHITECTURES: machine code for each, and PTX of the last for later ones.
if(NOT CMAKE_CUDA_COMPILER)
  find_program(CMAKE_CUDA_COMPILER NAMES "$ENV{CUDACXX}" nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
endif()
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "No CUDA compiler: put nvcc on PATH or set CUDACXX to it. It needs no GPU; it comes with JetPack, "
                      "with the CUDA toolkit, https://developer.nvidia.com/cuda-downloads, or from PyPI: pip install "
                      "'fastervit-trt[cuda-compiler]'")
endif()

# The packages of PyPI have their libraries in lib, where nvcc itself does not look.
cmake_path(GET CMAKE_CUDA_COMPILER PARENT_PATH cuda_root)
cmake_path(GET cuda_root PARENT_PATH cuda_root)
if(EXISTS "${cuda_root}/lib/libcudart_static.a" AND NOT EXISTS "${cuda_root}/lib64")
  set(ENV{LIBRARY_PATH} "${cuda_root}/lib") # for CMake's test of the compiler
  link_directories("${cuda_root}/lib")
endif()

# A100, Orin, L4 and RTX 40, H100 and H200, B200, Thor, RTX 50.
set(FASTERVIT_TRT_CUDA_ARCHITECTURES "80;87;89;90;100;110;120" CACHE STRING
    "GPUs to compile for, by compute capability without the dot, or native")

if(FASTERVIT_TRT_CUDA_ARCHITECTURES STREQUAL "native")
  if(CMAKE_VERSION VERSION_LESS 3.24)
    message(FATAL_ERROR "FASTERVIT_TRT_CUDA_ARCHITECTURES=native needs CMake 3.24, this is ${CMAKE_VERSION}: "
                        "give the number, as in -DFASTERVIT_TRT_CUDA_ARCHITECTURES=87")
  endif()
  set(CMAKE_CUDA_ARCHITECTURES native)
else()
  execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-code OUTPUT_VARIABLE known COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9]+" known "${known}")
  set(CMAKE_CUDA_ARCHITECTURES "")
  set(left_out "")
  foreach(architecture IN LISTS FASTERVIT_TRT_CUDA_ARCHITECTURES)
    if(architecture IN_LIST known)
      list(APPEND CMAKE_CUDA_ARCHITECTURES "${architecture}-real")
      set(last "${architecture}")
    else()
      list(APPEND left_out "${architecture}")
    endif()
  endforeach()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} knows none of the GPUs ${FASTERVIT_TRT_CUDA_ARCHITECTURES} "
                        "(FASTERVIT_TRT_CUDA_ARCHITECTURES), but ${known}")
  endif()
  list(APPEND CMAKE_CUDA_ARCHITECTURES "${last}-virtual")
  if(left_out)
    message(STATUS "Left out GPUs that ${CMAKE_CUDA_COMPILER} does not know: ${left_out}")
  endif()
endif()
enable_language(CUDA)
