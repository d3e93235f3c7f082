// out = ct + MHSA(LN(ct)) in three kernels of fp32 arithmetic, one thread per result: version 1, and the oracle of the
// others. Takes every dtype and size.
#include "../common/launch.h"
#include "../common/types.h"
#include "../window_attention/kernel.h"
#include "tactics.h"
#include "tile_config.h"

namespace fastervit::carrier_attention {
namespace {

template <typename T>
struct Product {
  Call call;
  const T* x;  // (rows, depth); nullptr: LN(ct)
  const T* weight;
  const T* bias;
  T* out;
  int depth;
  int columns;
  bool residual;
};

// out = x Wᵀ + b (+ ct). Shared memory: means and inverse deviations of the rows, a tile of x, a tile of W.
template <typename T>
__global__ void __launch_bounds__(kPlainTile* kPlainTile) plain_product(Product<T> product) {
  __shared__ float mean[kPlainTile], inverse[kPlainTile];
  __shared__ float x_tile[kPlainTile][kPlainTile + 1], weight_tile[kPlainTile][kPlainTile + 1];
  const Carriers<T> carriers(product.call);
  const int i = threadIdx.x / kPlainTile;
  const int j = threadIdx.x % kPlainTile;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kPlainTile + i;
  const int column = blockIdx.y * kPlainTile + j;
  const bool inside = row < product.call.rows();

  if (product.x == nullptr && j == 0 && inside) {
    const int channels = product.call.channels;
    float sum = 0.0f;
    for (int c = 0; c < channels; ++c) sum += carriers.at(row, c);
    const float average = sum / static_cast<float>(channels);
    float squares = 0.0f;
    for (int c = 0; c < channels; ++c) {
      const float deviation = carriers.at(row, c) - average;
      squares = fmaf(deviation, deviation, squares);
    }
    mean[i] = average;
    inverse[i] = rsqrtf(squares / static_cast<float>(channels) + product.call.epsilon);
  }
  float sum = 0.0f;
  for (int first = 0; first < product.depth; first += kPlainTile) {
    __syncthreads();
    const int k = first + j;
    float x = 0.0f;
    if (inside && k < product.depth) {
      if (product.x != nullptr) {
        x = to_float(product.x[row * product.depth + k]);
      } else {
        const float weight = to_float(static_cast<const T*>(product.call.norm_weight)[k]);
        const float bias = to_float(static_cast<const T*>(product.call.norm_bias)[k]);
        // Rounded to T, as what a tensor core multiplies would be.
        x = to_float(from_float<T>(fmaf((carriers.at(row, k) - mean[i]) * inverse[i], weight, bias)));
      }
    }
    x_tile[i][j] = x;
    const int weight_row = blockIdx.y * kPlainTile + i;
    const bool exists = weight_row < product.columns && k < product.depth;
    weight_tile[i][j] =
        exists ? to_float(product.weight[static_cast<std::int64_t>(weight_row) * product.depth + k]) : 0.0f;
    __syncthreads();
    for (int d = 0; d < kPlainTile; ++d) sum = fmaf(x_tile[i][d], weight_tile[j][d], sum);
  }
  if (!inside || column >= product.columns) return;
  sum += to_float(product.bias[column]);
  if (product.residual) sum += carriers.at(row, column);
  product.out[row * product.columns + column] = from_float<T>(sum);
}

template <typename T>
int start(const Call& call, int dtype, void* stream) {
  const int dim = call.dim();
  T* qkv = static_cast<T*>(call.workspace);
  T* context = qkv + call.rows() * 3 * dim;
  const auto multiply = [&](const Product<T>& product) {
    const dim3 grid(static_cast<unsigned>((call.rows() + kPlainTile - 1) / kPlainTile),
                    static_cast<unsigned>((product.columns + kPlainTile - 1) / kPlainTile));
    return launch(plain_product<T>, grid, kPlainTile * kPlainTile, 0, stream, product);
  };
  if (const int error =
          multiply({call, nullptr, static_cast<const T*>(call.qkv_weight), static_cast<const T*>(call.qkv_bias), qkv,
                    call.channels, 3 * dim, /*residual=*/false})) {
    return error;
  }
  if (const int error = fastervit_window_attention(context, qkv, call.bias, dtype, call.images, call.carriers_of_image,
                                                   call.heads, call.head_dim, 1.0f, 1.0f, FASTERVIT_PLAIN, stream)) {
    return error;
  }
  return multiply({call, context, static_cast<const T*>(call.proj_weight), static_cast<const T*>(call.proj_bias),
                   static_cast<T*>(call.out), dim, call.channels, /*residual=*/true});
}

}  // namespace

int plain(const Call& call, int dtype, void* stream) {
  switch (dtype) {
    case FASTERVIT_FLOAT32: return start<float>(call, dtype, stream);
    case FASTERVIT_FLOAT16: return start<__half>(call, dtype, stream);
    default: return start<__nv_bfloat16>(call, dtype, stream);
  }
}

}  // namespace fastervit::carrier_attention
