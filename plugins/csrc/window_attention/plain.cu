// context = softmax(q kᵀ + bias) v, one warp per query, fp32 arithmetic: version 1, and the oracle of the others.
//
// Takes every dtype, head dim and up to 3072 tokens; reads keys and values from L2 again for every query.
// Shared memory: scores [query of the block][key].
#include "../common/fragments.h"
#include "../common/launch.h"
#include "../common/types.h"
#include "tactics.h"
#include "tile_config.h"

namespace fastervit::window_attention {
namespace {

__device__ __forceinline__ float widened(std::int8_t x) { return static_cast<float>(x); }
template <typename T>
__device__ __forceinline__ float widened(T x) {
  return to_float(x);
}

template <typename T>
__device__ __forceinline__ void store(T* to, float x) {
  *to = from_float<T>(x);
}
__device__ __forceinline__ void store(std::int8_t* to, float x) {
  *to = static_cast<std::int8_t>(fminf(fmaxf(rintf(x), -128.0f), 127.0f));
}

__device__ __forceinline__ float warp_max(float x) {
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
  return x;
}

__device__ __forceinline__ float warp_sum(float x) {
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}

template <typename T, typename Bias>
__global__ void __launch_bounds__(kPlainQueries* kLanes) plain_kernel(Call call) {
  const int lane = threadIdx.x % kLanes;
  const int tokens = call.tokens;
  const int row_elements = 3 * call.dim;
  float* scores = reinterpret_cast<float*>(dynamic_shared()) + threadIdx.x / kLanes * tokens;

  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kPlainQueries + threadIdx.x / kLanes;
  const std::int64_t window_and_head = index / tokens;
  const int query = static_cast<int>(index % tokens);
  const std::int64_t window = window_and_head / call.heads;
  const int head = static_cast<int>(window_and_head % call.heads);
  if (window >= call.windows) return;

  const T* window_qkv = static_cast<const T*>(call.qkv) + window * tokens * row_elements + head * call.head_dim;
  const T* q = window_qkv + static_cast<std::int64_t>(query) * row_elements;
  const T* keys = window_qkv + call.dim;
  const T* values = keys + call.dim;
  const Bias* bias = static_cast<const Bias*>(call.bias) + (static_cast<std::int64_t>(head) * tokens + query) * tokens;

  float largest = -INFINITY;
  for (int key = lane; key < tokens; key += kLanes) {
    const T* k = keys + static_cast<std::int64_t>(key) * row_elements;
    float product = 0.0f;
    for (int d = 0; d < call.head_dim; ++d) product = fmaf(widened(q[d]), widened(k[d]), product);
    scores[key] = fmaf(product, call.score_scale, to_float(bias[key]));
    largest = fmaxf(largest, scores[key]);
  }
  largest = warp_max(largest);
  float sum = 0.0f;
  for (int key = lane; key < tokens; key += kLanes) {
    scores[key] = exp2f((scores[key] - largest) * kLog2E);
    sum += scores[key];
  }
  const float scale = call.context_scale / warp_sum(sum);
  __syncwarp();

  T* context = static_cast<T*>(call.context) + ((window * tokens + query) * call.heads + head) * call.head_dim;
  for (int d = lane; d < call.head_dim; d += kLanes) {
    float total = 0.0f;
    for (int key = 0; key < tokens; ++key) {
      total = fmaf(scores[key], widened(values[static_cast<std::int64_t>(key) * row_elements + d]), total);
    }
    store(context + d, total * scale);
  }
}

}  // namespace

int plain(const Call& call, int dtype, void* stream) {
  const std::int64_t queries = static_cast<std::int64_t>(call.windows) * call.heads * call.tokens;
  const dim3 grid(static_cast<unsigned>((queries + kPlainQueries - 1) / kPlainQueries));
  const int shared_bytes = kPlainQueries * call.tokens * static_cast<int>(sizeof(float));
  const auto start = [&](void (*kernel)(Call)) {
    return launch(kernel, grid, kPlainQueries * kLanes, shared_bytes, stream, call);
  };
  switch (dtype) {
    case FASTERVIT_FLOAT32: return start(plain_kernel<float, float>);
    case FASTERVIT_FLOAT16: return start(plain_kernel<__half, __half>);
    case FASTERVIT_BFLOAT16: return start(plain_kernel<__nv_bfloat16, __nv_bfloat16>);
    default: return start(plain_kernel<std::int8_t, __half>);
  }
}

}  // namespace fastervit::window_attention
