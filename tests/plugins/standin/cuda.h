// What the stand-in of TensorRT asks of the stand-in of CUDA.
#ifndef FASTERVIT_STANDIN_CUDA_H
#define FASTERVIT_STANDIN_CUDA_H

#include <functional>

struct CUstream_st;

namespace fastervit::standin {

void enqueue(CUstream_st* stream, std::function<void()> work);

}  // namespace fastervit::standin

#endif  // FASTERVIT_STANDIN_CUDA_H
