// The kernels of CarrierAttention, for its launcher, and what they share: where a carrier's row lies. All return a
// cudaError_t.
#ifndef FASTERVIT_CARRIER_ATTENTION_TACTICS_H
#define FASTERVIT_CARRIER_ATTENTION_TACTICS_H

#include <cstdint>

#include "../common/numeric.h"

namespace fastervit::carrier_attention {

struct Call {
  void* out;
  const void* tokens;
  const void* table;
  const void* norm_weight;
  const void* norm_bias;
  const void* qkv_weight;
  const void* qkv_bias;
  const void* bias;
  const void* proj_weight;
  const void* proj_bias;
  void* workspace;
  int images;
  int carriers_of_image;
  int carriers_per_window;
  int tokens_per_window;
  int channels;
  int heads;
  int head_dim;
  float epsilon;
  int depth;  // of a step of the fused kernel

  __host__ __device__ int dim() const { return heads * head_dim; }
  __host__ __device__ std::int64_t rows() const { return static_cast<std::int64_t>(images) * carriers_of_image; }
};

// ct = tokens + table, in place: row i of all carriers, in the order of images, windows, carriers of a window. The sum is
// rounded to T, as if it had been stored.
template <typename T>
struct Carriers {
  const T* tokens;
  const T* table;
  int carriers_of_image;
  int carriers_per_window;
  int tokens_per_window;
  int channels;

  __device__ explicit Carriers(const Call& call)
      : tokens(static_cast<const T*>(call.tokens)),
        table(static_cast<const T*>(call.table)),
        carriers_of_image(call.carriers_of_image),
        carriers_per_window(call.carriers_per_window),
        tokens_per_window(call.tokens_per_window),
        channels(call.channels) {}

  __device__ __forceinline__ const T* row(std::int64_t i) const {
    const std::int64_t window = i / carriers_per_window;
    return tokens + (window * tokens_per_window + i % carriers_per_window) * channels;
  }

  __device__ __forceinline__ const T* table_row(std::int64_t i) const {
    return table + i % carriers_of_image * channels;
  }

  __device__ __forceinline__ float at(std::int64_t i, int column) const {
    const float x = to_float(row(i)[column]);
    return table == nullptr ? x : to_float(from_float<T>(x + to_float(table_row(i)[column])));
  }

  // 16 bytes of a row; `column` is a multiple of as many elements.
  __device__ __forceinline__ Vector<T> piece(std::int64_t i, int column) const {
    Vector<T> x = *reinterpret_cast<const Vector<T>*>(row(i) + column);
    if (table != nullptr) {
      const Vector<T> added = *reinterpret_cast<const Vector<T>*>(table_row(i) + column);
#pragma unroll
      for (int j = 0; j < Vector<T>::size; ++j) x.x[j] = from_float<T>(to_float(x.x[j]) + to_float(added.x[j]));
    }
    return x;
  }
};

// Both through a workspace that holds qkv (rows, 3·D) and then the context (rows, D).
int plain(const Call& call, int dtype, void* stream);
int staged(const Call& call, int dtype, void* stream);
int fused(const Call& call, int dtype, void* stream);

}  // namespace fastervit::carrier_attention

#endif  // FASTERVIT_CARRIER_ATTENTION_TACTICS_H
