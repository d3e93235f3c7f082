// out = ct + MHSA(LN(ct)) in three kernels on tensor cores: LN and QKV, attention, projection and residual.
//
// Takes any number of carriers, also the hundreds of a 576 x 960 image. Carriers are read where they lie, among the
// tokens of their windows; LayerNorm happens on the way into shared memory.
//
// Legend: M rows, K depth (C or D), N columns (3·D or C); weight (N, K).
// Shared memory: x [stage][64][32 + 8], weight [stage][64][32 + 8]; at the end results [64][64 + 8]; mean and inverse
// deviation of 64 rows.
#include "../common/fragments.h"
#include "../common/launch.h"
#include "../common/types.h"
#include "../window_attention/kernel.h"
#include "tactics.h"
#include "tile_config.h"

namespace fastervit::carrier_attention {
namespace {

constexpr int kPiece = 8;  // elements of 16 bytes
constexpr int kStride = padded_stride(kTileDepth);
constexpr int kOutStride = padded_stride(kTileColumns);
constexpr int kPiecesOfStep = kTileDepth / kPiece;
constexpr int kPieces =
    kTileRows * kPiecesOfStep / kStagedThreads;  // of x, and as many of the weight, per thread and step
static_assert(kTileRows == kTileColumns, "one loop brings both");
static_assert(kTileRows * kOutStride <= 2 * 2 * kTileRows * kStride, "results fit where x and weight were");

template <typename T>
struct Linear {
  Call call;
  const T* x;  // (M, K) where not normalised
  const T* weight;
  const T* bias;
  T* out;
  int depth;
  int columns;
};

struct Shared {
  static constexpr int kTile = kTileRows * kStride;
  static constexpr int kBytes = 4 * kTile * 2 + 2 * kTileRows * static_cast<int>(sizeof(float));
};

// Mean and inverse deviation of the block's rows; eight lanes share a row, so that a warp has four under way. Two passes:
// differences of large sums would lose what LayerNorm is about where the mean is far from zero.
template <typename T>
__device__ void row_statistics(float* mean, float* inverse, const Carriers<T>& carriers, std::int64_t first_row,
                               const Call& call) {
  const int of_row = threadIdx.x % 8;
  for (int r = threadIdx.x / 8; r < kTileRows; r += kStagedThreads / 8) {
    const std::int64_t row = first_row + r;
    const bool inside = row < call.rows();
    float sum = 0.0f;
    for (int c = of_row * kPiece; inside && c < call.channels; c += 8 * kPiece) {
      const Vector<T> x = carriers.piece(row, c);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) sum += to_float(x.x[j]);
    }
    for (int lanes = 4; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    const float average = sum / static_cast<float>(call.channels);
    float squares = 0.0f;
    for (int c = of_row * kPiece; inside && c < call.channels; c += 8 * kPiece) {
      const Vector<T> x = carriers.piece(row, c);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) {
        const float deviation = to_float(x.x[j]) - average;
        squares = fmaf(deviation, deviation, squares);
      }
    }
    for (int lanes = 4; lanes > 0; lanes /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
    if (of_row == 0) {
      mean[r] = average;
      inverse[r] = rsqrtf(squares / static_cast<float>(call.channels) + call.epsilon);
    }
  }
}

// Normalised: x = LN(ct), out = x Wᵀ + b. Else x is read, and out = ct + x Wᵀ + b.
template <typename T, bool Normalised>
__global__ void __launch_bounds__(kStagedThreads, kStagedBlocks) linear_kernel(Linear<T> linear) {
  const Lane lane;
  const Call& call = linear.call;
  const Carriers<T> carriers(call);
  const int warp = threadIdx.x / kLanes;
  const int warp_row = warp / 2 * 32;
  const int warp_column = warp % 2 * 32;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kTileRows;
  const int first_column = blockIdx.y * kTileColumns;

  T* x_shared = reinterpret_cast<T*>(dynamic_shared());
  T* weight_shared = x_shared + 2 * Shared::kTile;
  float* mean = reinterpret_cast<float*>(weight_shared + 2 * Shared::kTile);
  float* inverse = mean + kTileRows;
  if constexpr (Normalised) {
    row_statistics(mean, inverse, carriers, first_row, call);
    __syncthreads();
  }

  // This thread's pieces of a step: x through registers, to be normalised on the way; the weight past them.
  Vector<T> pieces[kPieces];
  const auto fetch = [&](int k0, int stage) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = threadIdx.x + i * kStagedThreads;
      const int r = piece / kPiecesOfStep;
      const int k = k0 + piece % kPiecesOfStep * kPiece;
      pieces[i] = Vector<T>{};
      if (first_row + r < call.rows() && k < linear.depth) {
        if constexpr (Normalised) {
          pieces[i] = carriers.piece(first_row + r, k);
        } else {
          pieces[i] = *reinterpret_cast<const Vector<T>*>(linear.x + (first_row + r) * linear.depth + k);
        }
      }
      T* to = weight_shared + stage * Shared::kTile + r * kStride + (k - k0);
      if (first_column + r < linear.columns && k < linear.depth) {
        copy_async<16>(to, linear.weight + static_cast<std::int64_t>(first_column + r) * linear.depth + k);
      } else {
        *reinterpret_cast<Vector<T>*>(to) = Vector<T>{};
      }
    }
    copy_async_commit();
  };
  const auto store = [&](int k0, int stage) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = threadIdx.x + i * kStagedThreads;
      const int r = piece / kPiecesOfStep;
      const int k = k0 + piece % kPiecesOfStep * kPiece;
      if (Normalised && first_row + r < call.rows() && k < linear.depth) {
        const auto weight = *reinterpret_cast<const Vector<T>*>(static_cast<const T*>(call.norm_weight) + k);
        const auto bias = *reinterpret_cast<const Vector<T>*>(static_cast<const T*>(call.norm_bias) + k);
#pragma unroll
        for (int j = 0; j < kPiece; ++j) {
          const float normal = (to_float(pieces[i].x[j]) - mean[r]) * inverse[r];
          pieces[i].x[j] = from_float<T>(fmaf(normal, to_float(weight.x[j]), to_float(bias.x[j])));
        }
      }
      *reinterpret_cast<Vector<T>*>(x_shared + stage * Shared::kTile + r * kStride + (k - k0)) = pieces[i];
    }
  };

  float sums[2][4][4];
  clear(sums[0]);
  clear(sums[1]);
  fetch(0, 0);
  store(0, 0);
  int stage = 0;
  for (int k0 = 0; k0 < linear.depth; k0 += kTileDepth, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this step is here, and nobody works on the other stage any more
    const bool more = k0 + kTileDepth < linear.depth;
    if (more) fetch(k0 + kTileDepth, stage ^ 1);
    const T* x = x_shared + stage * Shared::kTile + warp_row * kStride;
    const T* weight = weight_shared + stage * Shared::kTile + warp_column * kStride;
#pragma unroll
    for (int k = 0; k < kTileDepth; k += 16) {
      std::uint32_t left[2][4];
      load_left(left[0], x + k, kStride, lane);
      load_left(left[1], x + 16 * kStride + k, kStride, lane);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        std::uint32_t right[4];
        load_right_transposed(right, weight + n * 16 * kStride + k, kStride, lane);
        mma_pair<T>(sums[0][2 * n], sums[0][2 * n + 1], left[0], right);
        mma_pair<T>(sums[1][2 * n], sums[1][2 * n + 1], left[1], right);
      }
    }
    if (more) store(k0 + kTileDepth, stage ^ 1);
  }

  // Bias and residual in fp32, one rounding; then out through shared memory in 16-byte pieces.
  __syncthreads();
  T* results = x_shared;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int column = warp_column + n * 8 + 2 * lane.p;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = warp_row + m * 16 + lane.g + 8 * half;
        float pair[2] = {sums[m][n][2 * half], sums[m][n][2 * half + 1]};
        if (first_row + r < call.rows() && first_column + column < linear.columns) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            pair[i] += to_float(linear.bias[first_column + column + i]);
            if constexpr (!Normalised) pair[i] += carriers.at(first_row + r, first_column + column + i);
          }
        }
        *reinterpret_cast<std::uint32_t*>(results + r * kOutStride + column) = pack2<T>(pair[0], pair[1]);
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTileRows * kTileColumns / kPiece; i += kStagedThreads) {
    const int r = i / (kTileColumns / kPiece);
    const int column = i % (kTileColumns / kPiece) * kPiece;
    if (first_row + r < call.rows() && first_column + column < linear.columns) {
      *reinterpret_cast<Vector<T>*>(linear.out + (first_row + r) * linear.columns + first_column + column) =
          *reinterpret_cast<const Vector<T>*>(results + r * kOutStride + column);
    }
  }
}

template <typename T>
int start(const Call& call, int dtype, void* stream) {
  const int dim = call.dim();
  T* qkv = static_cast<T*>(call.workspace);
  T* context = qkv + call.rows() * 3 * dim;
  const auto multiply = [&](void (*kernel)(Linear<T>), const Linear<T>& linear) {
    const dim3 grid(static_cast<unsigned>((call.rows() + kTileRows - 1) / kTileRows),
                    static_cast<unsigned>((linear.columns + kTileColumns - 1) / kTileColumns));
    return launch(kernel, grid, kStagedThreads, Shared::kBytes, stream, linear);
  };
  if (const int error =
          multiply(linear_kernel<T, true>, {call, nullptr, static_cast<const T*>(call.qkv_weight),
                                            static_cast<const T*>(call.qkv_bias), qkv, call.channels, 3 * dim})) {
    return error;
  }
  if (const int error =
          fastervit_window_attention(context, qkv, call.bias, dtype, call.images, call.carriers_of_image, call.heads,
                                     call.head_dim, 1.0f, 1.0f, FASTERVIT_AUTOMATIC, stream)) {
    return error;
  }
  return multiply(linear_kernel<T, false>,
                  {call, context, static_cast<const T*>(call.proj_weight), static_cast<const T*>(call.proj_bias),
                   static_cast<T*>(call.out), dim, call.channels});
}

}  // namespace

int staged(const Call& call, int dtype, void* stream) {
  return dtype == FASTERVIT_FLOAT16 ? start<__half>(call, dtype, stream) : start<__nv_bfloat16>(call, dtype, stream);
}

}  // namespace fastervit::carrier_attention
