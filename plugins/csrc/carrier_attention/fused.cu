// out = ct + MHSA(LN(ct)) in one kernel: a block takes the carriers of one image (or the tokens of one window) from their
// rows in global memory to the result, and nothing in between leaves the multiprocessor.
//
//   1  rows + table -> LN -> x                                     (G, C) in shared memory
//   2  for as many heads at once as there are warps per 16 rows:
//        q, k, v = x Wqkvᵀ + b                                     q stays in registers, k and v go to shared memory
//        context = softmax(q kᵀ + bias) v                          into shared memory, all heads side by side
//   3  out = rows + table + context Wpᵀ + b
//
// Global memory sees 2 U (U = the rows once) and the weights, which all blocks read and L2 therefore serves; separate
// kernels move about 21 U.
//
// Legend: G rows (≤ 64, padded with zeros to 16, 32 or 64), C channels, D = h · d, d head dim padded to kDim.
// Shared memory: x [G][C + 8], context [G][D + 8], weights [stage][head at once][q, k, v][kDim][depth + 8]; where the
// weights of a group of heads were: [head at once][k, v][G][kDim + 8].
// Warp w: rows w / heads-at-once · 16, head w % heads-at-once of the group.
//
// Staircase: 1 plain.cu; 2 staged.cu, three launches, 8 U less than stock kernels that split QKV; 3 this.
#include "../common/fragments.h"
#include "../common/launch.h"
#include "../common/types.h"
#include "tactics.h"
#include "tile_config.h"

namespace fastervit::carrier_attention {
namespace {

constexpr int kPiece = 8;  // elements of 16 bytes
constexpr int kThreads = kFusedWarps * kLanes;

template <typename T>
__device__ __forceinline__ Vector<T> load_piece(const void* from, std::int64_t element) {
  return *reinterpret_cast<const Vector<T>*>(static_cast<const T*>(from) + element);
}

// Step 1. Eight lanes share a row; statistics in two passes over shared memory, see staged.cu.
template <typename T, int Rows>
__device__ __forceinline__ void normalised_rows(T* x, int stride, const Carriers<T>& carriers, std::int64_t first_row,
                                                const Call& call) {
  const int of_row = threadIdx.x % 8;
  for (int first = 0; first < Rows; first += kThreads / 8) {
    const int r = first + threadIdx.x / 8;
    if (r >= Rows) continue;  // whole warps: Rows is a multiple of the four rows of a warp
    T* own = x + r * stride;
    if (r >= call.carriers_of_image) {
      for (int c = of_row * kPiece; c < call.channels; c += 8 * kPiece) {
        *reinterpret_cast<Vector<T>*>(own + c) = Vector<T>{};
      }
    }
    const bool inside = r < call.carriers_of_image;
    float sum = 0.0f;
    for (int c = of_row * kPiece; inside && c < call.channels; c += 8 * kPiece) {
      const Vector<T> piece = carriers.piece(first_row + r, c);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) sum += to_float(piece.x[j]);
      *reinterpret_cast<Vector<T>*>(own + c) = piece;  // read again by this thread only
    }
    for (int lanes = 4; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    const float mean = sum / static_cast<float>(call.channels);
    float squares = 0.0f;
    for (int c = of_row * kPiece; inside && c < call.channels; c += 8 * kPiece) {
      const Vector<T> piece = load_piece<T>(own, c);
#pragma unroll
      for (int j = 0; j < kPiece; ++j)
        squares = fmaf(to_float(piece.x[j]) - mean, to_float(piece.x[j]) - mean, squares);
    }
    for (int lanes = 4; lanes > 0; lanes /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
    const float inverse = rsqrtf(squares / static_cast<float>(call.channels) + call.epsilon);
    for (int c = of_row * kPiece; inside && c < call.channels; c += 8 * kPiece) {
      Vector<T> piece = load_piece<T>(own, c);
      const Vector<T> weight = load_piece<T>(call.norm_weight, c);
      const Vector<T> bias = load_piece<T>(call.norm_bias, c);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) {
        const float normal = (to_float(piece.x[j]) - mean) * inverse;
        piece.x[j] = from_float<T>(fmaf(normal, to_float(weight.x[j]), to_float(bias.x[j])));
      }
      *reinterpret_cast<Vector<T>*>(own + c) = piece;
    }
  }
}

// Starts the copy of one step of weights: `rows` rows of shared memory, `depth` channels from k0 on. source(row) is the
// row's start in global memory, or nullptr for a row of zeros.
template <typename T, typename Source>
__device__ __forceinline__ void copy_weights(T* to, int rows, int k0, int channels, int depth, const Source& source) {
  const RowShare share(threadIdx.x, kThreads, depth / kPiece, rows);
  const bool exists = k0 + share.column < channels;
  for (int row = share.first_row; row < rows; row += share.rows_at_once) {
    T* place = to + row * (depth + 8) + share.column;
    const T* from = source(row);
    if (from != nullptr && exists) {
      copy_async<16>(place, from + k0 + share.column);
    } else {
      *reinterpret_cast<Vector<T>*>(place) = Vector<T>{};
    }
  }
}

// sums (16 rows x 16 · Pairs columns) = x Wᵀ over all channels, the weights streamed through two stages. `own_rows` are
// the rows of a stage that belong to this warp. Ends with all warps done with the weights.
template <typename T, int Pairs, typename Source>
__device__ __forceinline__ void multiply(float (&sums)[2 * Pairs][4], const T* x, int x_stride, T* weights, int rows,
                                         int own_rows, int channels, int depth, const Source& source,
                                         const Lane& lane) {
  clear(sums);
  copy_weights(weights, rows, 0, channels, depth, source);
  copy_async_commit();
  int stage = 0;
  for (int k0 = 0; k0 < channels; k0 += depth, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this step is here, and nobody works on the other stage any more
    if (k0 + depth < channels) {
      copy_weights(weights + (stage ^ 1) * rows * (depth + 8), rows, k0 + depth, channels, depth, source);
      copy_async_commit();
    }
    const T* own = weights + (stage * rows + own_rows) * (depth + 8);
    for (int k = 0; k < depth && k0 + k < channels; k += 16) {
      std::uint32_t left[4];
      load_left(left, x + k0 + k, x_stride, lane);
#pragma unroll
      for (int n = 0; n < Pairs; ++n) {
        std::uint32_t right[4];
        load_right_transposed(right, own + n * 16 * (depth + 8) + k, depth + 8, lane);
        mma_pair<T>(sums[2 * n], sums[2 * n + 1], left, right);
      }
    }
  }
  __syncthreads();
}

// Adds the bias of q, k or v (one head, `head_dim` values, then zeros) to its tiles.
template <typename T, int Tiles>
__device__ __forceinline__ void add_column_bias(float (*tiles)[4], const T* bias, int columns, const Lane& lane) {
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
    const int column = n * 8 + 2 * lane.p;
    if (column < columns) {
#pragma unroll
      for (int i = 0; i < 4; ++i) tiles[n][i] += to_float(bias[column + i % 2]);
    }
  }
}

// A warp's 16 x 8 · Tiles results to shared memory.
template <typename T, int Tiles>
__device__ __forceinline__ void store_tiles(T* corner, int stride, const float (*tiles)[4], int columns,
                                            const Lane& lane) {
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
    if (n * 8 >= columns) break;
    T* place = corner + lane.g * stride + n * 8 + 2 * lane.p;
    *reinterpret_cast<std::uint32_t*>(place) = pack2<T>(tiles[n][0], tiles[n][1]);
    *reinterpret_cast<std::uint32_t*>(place + 8 * stride) = pack2<T>(tiles[n][2], tiles[n][3]);
  }
}

template <typename T, int HeadTiles, int RowTiles>
__global__ void __launch_bounds__(kThreads, 1) fused_kernel(Call call) {
  constexpr int kDim = HeadTiles * 16;
  constexpr int kRows = RowTiles * 16;
  constexpr int kHeads = heads_at_once(RowTiles);
  constexpr int kStride = padded_stride(kDim);
  const Lane lane;
  const int warp = threadIdx.x / kLanes;
  const int warp_row = warp / kHeads * 16;
  const int own = warp % kHeads;  // head of the group, and group of columns in the projection
  const int carriers_of_image = call.carriers_of_image;
  const int dim = call.dim();
  const int x_stride = call.channels + 8;
  const int context_stride = dim + 8;
  const Carriers<T> carriers(call);
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * carriers_of_image;

  T* x = reinterpret_cast<T*>(dynamic_shared());
  T* context_shared = x + kRows * x_stride;
  T* weights = context_shared + kRows * context_stride;
  T* keys = weights + own * 2 * kRows * kStride;
  T* values = keys + kRows * kStride;

  normalised_rows<T, kRows>(x, x_stride, carriers, first_row, call);
  __syncthreads();

  for (int first_head = 0; first_head < call.heads; first_head += kHeads) {
    const int head = first_head + own;
    const bool active = head < call.heads;
    const auto qkv_row = [&](int row) -> const T* {
      const int of_head = first_head + row / (3 * kDim);
      const int part = row / kDim % 3;
      const int d = row % kDim;
      if (of_head >= call.heads || d >= call.head_dim) return nullptr;
      return static_cast<const T*>(call.qkv_weight) +
             static_cast<std::int64_t>(part * dim + of_head * call.head_dim + d) * call.channels;
    };
    float qkv[6 * HeadTiles][4];
    multiply<T, 3 * HeadTiles>(qkv, x + warp_row * x_stride, x_stride, weights, kHeads * 3 * kDim, own * 3 * kDim,
                               call.channels, call.depth, qkv_row, lane);
    std::uint32_t q[HeadTiles][4];
    if (active) {
      const T* bias = static_cast<const T*>(call.qkv_bias) + head * call.head_dim;
#pragma unroll
      for (int part = 0; part < 3; ++part) {
        add_column_bias<T, 2 * HeadTiles>(qkv + part * 2 * HeadTiles, bias + part * dim, call.head_dim, lane);
      }
#pragma unroll
      for (int h = 0; h < HeadTiles; ++h) as_left<T>(q[h], qkv[2 * h], qkv[2 * h + 1]);
      store_tiles<T, 2 * HeadTiles>(keys + warp_row * kStride, kStride, qkv + 2 * HeadTiles, kDim, lane);
      store_tiles<T, 2 * HeadTiles>(values + warp_row * kStride, kStride, qkv + 4 * HeadTiles, kDim, lane);
    }
    __syncthreads();  // keys and values of all rows
    if (active) {
      std::uint32_t bias[2 * RowTiles][2];
      load_bias<T, RowTiles>(
          bias,
          static_cast<const T*>(call.bias) + static_cast<std::int64_t>(head) * carriers_of_image * carriers_of_image,
          warp_row, 0, carriers_of_image, lane);
      float scores[2 * RowTiles][4];
      start_from_bias<T>(scores, bias);
      add_scores<T, HeadTiles, RowTiles>(scores, q, keys, kStride, lane);
      float sums[2];
      softmax_numerators(scores, sums);
      float context[2 * HeadTiles][4];
      clear(context);
      add_values<T, HeadTiles, RowTiles>(context, scores, values, kStride, lane);
#pragma unroll
      for (int n = 0; n < 2 * HeadTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) context[n][i] = __fdividef(context[n][i], sums[i / 2]);
      }
      store_tiles<T, 2 * HeadTiles>(context_shared + warp_row * context_stride + head * call.head_dim, context_stride,
                                    context, call.head_dim, lane);
    }
    __syncthreads();  // the next weights overwrite keys and values; the projection reads all heads
  }

  // x is free: results go there, and leave in 16-byte pieces.
  for (int first = 0; first < call.channels; first += kHeads * kProjectionColumns) {
    const auto projection_row = [&](int row) -> const T* {
      if (first + row >= call.channels) return nullptr;
      return static_cast<const T*>(call.proj_weight) + static_cast<std::int64_t>(first + row) * dim;
    };
    float sums[kProjectionColumns / 8][4];
    multiply<T, kProjectionColumns / 16>(sums, context_shared + warp_row * context_stride, context_stride, weights,
                                         kHeads * kProjectionColumns, own * kProjectionColumns, dim, call.depth,
                                         projection_row, lane);
#pragma unroll
    for (int n = 0; n < kProjectionColumns / 8; ++n) {
      const int column = first + own * kProjectionColumns + n * 8 + 2 * lane.p;
      if (column >= call.channels) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = warp_row + lane.g + 8 * half;
        if (r >= carriers_of_image) continue;
        float pair[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          pair[i] = sums[n][2 * half + i] + to_float(static_cast<const T*>(call.proj_bias)[column + i]) +
                    carriers.at(first_row + r, column + i);
        }
        *reinterpret_cast<std::uint32_t*>(x + r * x_stride + column) = pack2<T>(pair[0], pair[1]);
      }
    }
  }
  __syncthreads();
  const int pieces = call.channels / kPiece;
  for (int i = threadIdx.x; i < carriers_of_image * pieces; i += kThreads) {
    const int r = i / pieces;
    const int column = i % pieces * kPiece;
    *reinterpret_cast<Vector<T>*>(static_cast<T*>(call.out) + (first_row + r) * call.channels + column) =
        load_piece<T>(x, r * x_stride + column);
  }
}

template <typename T, int HeadTiles>
int start(const Call& call, void* stream) {
  const int shared_bytes =
      fused_shared_bytes(call.carriers_of_image, call.channels, call.heads, call.head_dim, call.depth);
  const dim3 grid(static_cast<unsigned>(call.images));
  const auto go = [&](void (*kernel)(Call)) { return launch(kernel, grid, kThreads, shared_bytes, stream, call); };
  switch (fused_row_tiles(call.carriers_of_image)) {
    case 1: return go(fused_kernel<T, HeadTiles, 1>);
    case 2: return go(fused_kernel<T, HeadTiles, 2>);
    default: return go(fused_kernel<T, HeadTiles, 4>);
  }
}

template <typename T>
int start(const Call& call, void* stream) {
  switch (head_tiles(call.head_dim)) {
    case 2: return start<T, 2>(call, stream);
    case 3: return start<T, 3>(call, stream);
    case 4: return start<T, 4>(call, stream);
    default: return start<T, 5>(call, stream);
  }
}

}  // namespace

int fused(const Call& call, int dtype, void* stream) {
  return dtype == FASTERVIT_FLOAT16 ? start<__half>(call, stream) : start<__nv_bfloat16>(call, stream);
}

}  // namespace fastervit::carrier_attention
