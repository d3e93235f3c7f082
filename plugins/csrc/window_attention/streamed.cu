// context = softmax(q kᵀ + bias) v for windows of any size: keys and values tile by tile, softmax as they come.
//
// A block takes 64 queries of one window and head; scores never leave the registers (FlashAttention, arXiv 2205.14135,
// algorithm 1; rescaling by running maxima as in arXiv 1805.02867).
//
// Legend: N tokens, d head dim padded with zeros to a multiple of 16.
// Shared memory: [64 queries][d + 8], then [stage][keys, values][64][d + 8].
#include "../common/fragments.h"
#include "../common/launch.h"
#include "../common/types.h"
#include "tactics.h"
#include "tile_config.h"

namespace fastervit::window_attention {
namespace {

constexpr int kPiece = 8;  // elements of a 16-byte copy
constexpr int kQueries = kStreamedRowTiles * 16;
constexpr int kKeys = kStreamedKeyTiles * 16;
constexpr int kThreads = kStreamedRowTiles * kLanes;

// 64 rows from `first` on of q, k or v (`from` is row 0) to shared memory; rows past the window are left as they are.
template <typename T>
__device__ __forceinline__ void copy_rows(T* to, const T* from, int first, const RowShare& share, const Call& call,
                                          int stride) {
  const int rows = call.tokens - first < kKeys ? call.tokens - first : kKeys;
  const T* source = from + static_cast<std::int64_t>(first) * (3 * call.dim) + share.column;
  for (int row = share.first_row; row < rows; row += share.rows_at_once) {
    copy_async<16>(to + row * stride + share.column, source + static_cast<std::int64_t>(row) * (3 * call.dim));
  }
}
static_assert(kQueries == kKeys, "one function copies both");

// Softmax so far of rows g and g + 8.
struct Running {
  float largest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
};

// scores -> numerators against the new maxima; context and sums are brought to the same.
template <int Tiles, int ContextTiles>
__device__ __forceinline__ void advance(Running& running, float (&scores)[Tiles][4],
                                        float (&context)[ContextTiles][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = -INFINITY;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    largest = fmaxf(running.largest[half], row_max(largest));
    // A row may have met nothing but bias of -inf yet; -inf - (-inf) would make it NaN for good.
    const float reference = largest == -INFINITY ? 0.0f : largest * kLog2E;
    const float shrink = exp2_approximate(fmaf(running.largest[half], kLog2E, -reference));
    running.largest[half] = largest;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[n][i] = exp2_approximate(fmaf(scores[n][i], kLog2E, -reference));
        sum += scores[n][i];
      }
    }
    running.sum[half] = running.sum[half] * shrink + row_sum(sum);
#pragma unroll
    for (int n = 0; n < ContextTiles; ++n) {
      context[n][2 * half] *= shrink;
      context[n][2 * half + 1] *= shrink;
    }
  }
}

template <typename T, int HeadTiles>
__global__ void __launch_bounds__(kThreads, 2) streamed_kernel(Call call) {
  constexpr int kStride = padded_stride(HeadTiles * 16);
  const Lane lane;
  const int tokens = call.tokens;
  const int dim = call.dim;
  const int blocks_of_window = (tokens + kQueries - 1) / kQueries;
  const int first_query = blockIdx.x % blocks_of_window * kQueries;
  const int head = static_cast<int>(blockIdx.x / blocks_of_window % call.heads);
  const std::int64_t window = blockIdx.x / blocks_of_window / call.heads;
  const int warp_row = threadIdx.x / kLanes * 16;

  T* queries = reinterpret_cast<T*>(dynamic_shared());
  T* keys = queries + kQueries * kStride;
  constexpr int kMatrix = kKeys * kStride;
  const auto keys_of = [&](int stage) { return keys + stage * 2 * kMatrix; };
  const T* q = static_cast<const T*>(call.qkv) + window * tokens * 3 * dim + head * call.head_dim;
  const T* bias = static_cast<const T*>(call.bias) + static_cast<std::int64_t>(head) * tokens * tokens;

  const RowShare share(threadIdx.x, kThreads, call.head_dim / kPiece, kKeys);

  // Zeros in the padding, once. Rows past the window keep them, or an earlier tile's, which is finite where the window is.
  for (int i = threadIdx.x; i < streamed_shared_bytes(HeadTiles) / 16; i += kThreads) {
    reinterpret_cast<uint4*>(dynamic_shared())[i] = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
  copy_rows(queries, q, first_query, share, call, kStride);
  copy_rows(keys_of(0), q + dim, 0, share, call, kStride);
  copy_rows(keys_of(0) + kMatrix, q + 2 * dim, 0, share, call, kStride);
  copy_async_commit();

  Running running;
  float context[2 * HeadTiles][4];
  clear(context);
  std::uint32_t q_left[HeadTiles][4];
  T* own = queries + warp_row * kStride;
  int stage = 0;
  for (int first_key = 0; first_key < tokens; first_key += kKeys, stage ^= 1) {
    std::uint32_t tile_bias[2 * kStreamedKeyTiles][2];  // asked for before waiting for the keys
    load_bias<T, kStreamedKeyTiles>(tile_bias, bias, first_query + warp_row, first_key, tokens, lane);
    copy_async_wait<0>();
    __syncthreads();  // this tile is here, and nobody works on the other stage any more
    copy_rows(keys_of(stage ^ 1), q + dim, first_key + kKeys, share, call, kStride);
    copy_rows(keys_of(stage ^ 1) + kMatrix, q + 2 * dim, first_key + kKeys, share, call, kStride);
    copy_async_commit();
    if (first_key == 0) {
#pragma unroll
      for (int h = 0; h < HeadTiles; ++h) load_left(q_left[h], own + h * 16, kStride, lane);
    }
    float scores[2 * kStreamedKeyTiles][4];
    start_from_bias<T>(scores, tile_bias);
    add_scores<T, HeadTiles, kStreamedKeyTiles>(scores, q_left, keys_of(stage), kStride, lane);
    advance(running, scores, context);
    add_values<T, HeadTiles, kStreamedKeyTiles>(context, scores, keys_of(stage) + kMatrix, kStride, lane);
  }

  // Out through the rows that held this warp's queries, so that global memory is written in 16-byte pieces.
  const float inverse[2] = {__fdividef(1.0f, running.sum[0]), __fdividef(1.0f, running.sum[1])};
  __syncwarp();
#pragma unroll
  for (int n = 0; n < 2 * HeadTiles; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<std::uint32_t*>(own + (lane.g + 8 * half) * kStride + n * 8 + 2 * lane.p) =
          pack2<T>(context[n][2 * half] * inverse[half], context[n][2 * half + 1] * inverse[half]);
    }
  }
  __syncwarp();
  const RowShare leaving(lane.id, kLanes, call.head_dim / kPiece, 16);
  const int first_row = first_query + warp_row;
  T* to = static_cast<T*>(call.context) + (window * tokens + first_row) * dim + head * call.head_dim + leaving.column;
  for (int row = leaving.first_row; row < 16 && first_row + row < tokens; row += leaving.rows_at_once) {
    *reinterpret_cast<uint4*>(to + static_cast<std::int64_t>(row) * dim) =
        *reinterpret_cast<const uint4*>(own + row * kStride + leaving.column);
  }
}

template <typename T>
int start(const Call& call, void* stream) {
  const std::int64_t blocks =
      static_cast<std::int64_t>((call.tokens + kQueries - 1) / kQueries) * call.heads * call.windows;
  const dim3 grid(static_cast<unsigned>(blocks));
  const auto go = [&](void (*kernel)(Call), int shared_bytes) {
    return launch(kernel, grid, kThreads, shared_bytes, stream, call);
  };
  switch (head_tiles(call.head_dim)) {
    case 2: return go(streamed_kernel<T, 2>, streamed_shared_bytes(2));
    case 3: return go(streamed_kernel<T, 3>, streamed_shared_bytes(3));
    case 4: return go(streamed_kernel<T, 4>, streamed_shared_bytes(4));
    default: return go(streamed_kernel<T, 5>, streamed_shared_bytes(5));
  }
}

}  // namespace

int streamed(const Call& call, int dtype, void* stream) {
  return dtype == FASTERVIT_FLOAT16 ? start<__half>(call, stream) : start<__nv_bfloat16>(call, stream);
}

}  // namespace fastervit::window_attention
