// context = softmax(q kᵀ + bias) v for windows of up to 80 tokens, whole windows in shared memory and registers.
//
// A block serves one head and walks over windows (blockIdx.y, blockIdx.y + gridDim.y, ...): its bias stays in registers,
// and the next window arrives while this one is worked on. One warp takes 16 queries against all keys, so that a softmax
// row lives in four lanes and needs no second pass.
//
// Legend: N tokens, d head dim, both padded with zeros to multiples of 16 in shared memory.
// Shared memory: [stage][window of the block][q, k, v][N][d + 8]; int8: [window][q, k, v][N][d + 8] widened to fp16, then
// [stage][window][q, k, v][N][d] raw. The context leaves through the rows that held its own queries, so that global memory
// is written in 16-byte pieces.
//
// Staircase: 1 plain.cu; 2 this: QKV read once, packed, as the projection left it; bias once per block.
#include <type_traits>

#include "../common/fragments.h"
#include "../common/launch.h"
#include "../common/types.h"
#include "tactics.h"
#include "tile_config.h"

namespace fastervit::window_attention {
namespace {

constexpr int kPiece = 8;  // elements that move together: 16 bytes of 16-bit elements, 8 of int8

// The copy of one window's q, k and v rows of a head by the threads of its group.
template <typename Stored>
struct WindowCopy {
  RowShare share;
  const Stored* source;  // this thread's piece of the first row of window 0
  int offset;            // elements into the shared window, before the row

  __device__ WindowCopy(const Call& call, int head, int thread, int threads, int rows, int stride)
      : share(thread, threads, 3 * call.head_dim / kPiece, rows) {
    const int part = share.column / call.head_dim;  // q, k or v
    const int column = share.column % call.head_dim;
    source = static_cast<const Stored*>(call.qkv) + part * call.dim + head * call.head_dim + column;
    offset = part * rows * stride + column;
  }

  __device__ __forceinline__ void start(Stored* window_shared, int stride, int window, const Call& call) const {
    const Stored* from = source + (static_cast<std::int64_t>(window) * call.tokens + share.first_row) * (3 * call.dim);
    Stored* to = window_shared + offset + share.first_row * stride;
    for (int row = share.first_row; row < call.tokens; row += share.rows_at_once) {
      copy_async<kPiece* static_cast<int>(sizeof(Stored))>(to, from);
      from += static_cast<std::int64_t>(share.rows_at_once) * (3 * call.dim);
      to += share.rows_at_once * stride;
    }
  }
};

// A window's int8 rows to fp16, exactly; padding rows are zero in both.
template <int Rows, int Stride, int RawStride>
__device__ __forceinline__ void widen(__half* wide, const std::int8_t* raw, const RowShare& share) {
  for (int row = share.first_row; row < Rows; row += share.rows_at_once) {
    const uint2 narrow = *reinterpret_cast<const uint2*>(raw + row * RawStride + share.column);
    std::int8_t x[kPiece];
    memcpy(x, &narrow, sizeof x);
    *reinterpret_cast<uint4*>(wide + row * Stride + share.column) = make_uint4(
        pack2<__half>(x[0], x[1]), pack2<__half>(x[2], x[3]), pack2<__half>(x[4], x[5]), pack2<__half>(x[6], x[7]));
  }
}

__device__ __forceinline__ void store_pair(__half* to, float first, float second) {
  *reinterpret_cast<std::uint32_t*>(to) = pack2<__half>(first, second);
}
__device__ __forceinline__ void store_pair(__nv_bfloat16* to, float first, float second) {
  *reinterpret_cast<std::uint32_t*>(to) = pack2<__nv_bfloat16>(first, second);
}
// Rounds half to even and saturates, as QuantizeLinear does.
__device__ __forceinline__ void store_pair(std::int8_t* to, float first, float second) {
  to[0] = static_cast<std::int8_t>(fminf(fmaxf(rintf(first), -128.0f), 127.0f));
  to[1] = static_cast<std::int8_t>(fminf(fmaxf(rintf(second), -128.0f), 127.0f));
}

// A warp's 16 rows of context, scaled: registers -> the shared rows that held its queries -> global memory, of which
// `rows` exist.
template <typename Stored, typename T, int HeadTiles>
__device__ __forceinline__ void leave(Stored* to, const RowShare& share, int rows, const Call& call, T* own,
                                      const float (&context)[2 * HeadTiles][4], const float (&scales)[2],
                                      const Lane& lane) {
  constexpr int kStride = padded_stride(HeadTiles * 16) * static_cast<int>(sizeof(T) / sizeof(Stored));
  using Piece = std::conditional_t<sizeof(Stored) == 1, uint2, uint4>;
  Stored* from = reinterpret_cast<Stored*>(own);
  __syncwarp();  // the queries are in registers; no other warp reads these rows
#pragma unroll
  for (int n = 0; n < 2 * HeadTiles; ++n) {
    if (n * 8 >= call.head_dim) break;  // padding stays zero, whatever a window's values are
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      store_pair(from + (lane.g + 8 * half) * kStride + n * 8 + 2 * lane.p, context[n][2 * half] * scales[half],
                 context[n][2 * half + 1] * scales[half]);
    }
  }
  __syncwarp();
  for (int row = share.first_row; row < rows; row += share.rows_at_once) {
    *reinterpret_cast<Piece*>(to + row * call.dim + share.column) =
        *reinterpret_cast<const Piece*>(from + row * kStride + share.column);
  }
}

// T: element of the tensor cores. Stored: element in global memory, T or int8.
template <typename T, typename Stored, int HeadTiles, int RowTiles>
__global__ void __launch_bounds__(windows_per_block(RowTiles) * RowTiles * kLanes,
                                  resident_min_blocks(RowTiles, HeadTiles, sizeof(Stored) == 1))
    resident_kernel(Call call) {
  constexpr bool kInt8 = sizeof(Stored) == 1;
  constexpr int kWindows = windows_per_block(RowTiles);
  constexpr int kGroupThreads = RowTiles * kLanes;
  constexpr int kRows = RowTiles * 16;
  constexpr int kStride = padded_stride(HeadTiles * 16);
  constexpr int kWide = 3 * kRows * kStride;                    // elements of a window as the tensor cores take it
  constexpr int kRawStride = kInt8 ? HeadTiles * 16 : kStride;  // and as it arrives
  constexpr int kRaw = 3 * kRows * kRawStride;

  const Lane lane;
  const int group = threadIdx.x / kGroupThreads;
  const int thread = threadIdx.x % kGroupThreads;
  const int first_row = thread / kLanes * 16;
  const int head = blockIdx.x;
  const int tokens = call.tokens;

  unsigned char* shared = dynamic_shared();
  T* wide = reinterpret_cast<T*>(shared);
  Stored* raw = reinterpret_cast<Stored*>(kInt8 ? shared + kWindows * kWide * sizeof(T) : shared);
  const auto raw_window = [&](int stage) { return raw + (stage * kWindows + group) * kRaw; };

  // Padding is zero once and for all: copies leave it alone, and 0 · (what a key or value holds there) must not be NaN.
  for (int i = threadIdx.x; i < resident_shared_bytes(RowTiles, HeadTiles, kInt8) / 16; i += blockDim.x) {
    reinterpret_cast<uint4*>(shared)[i] = make_uint4(0, 0, 0, 0);
  }
  std::uint32_t bias[2 * RowTiles][2];
  load_bias<T, RowTiles>(bias, static_cast<const T*>(call.bias) + static_cast<std::int64_t>(head) * tokens * tokens,
                         first_row, 0, tokens, lane);
  __syncthreads();

  const WindowCopy<Stored> copy(call, head, thread, kGroupThreads, kRows, kRawStride);
  const RowShare rows_of_warp(lane.id, kLanes, call.head_dim / kPiece, 16);
  const RowShare rows_of_group(thread, kGroupThreads, call.head_dim / kPiece, 3 * kRows);
  const int step = gridDim.y * kWindows;
  int window = blockIdx.y * kWindows + group;
  if (window < call.windows) copy.start(raw_window(0), kRawStride, window, call);
  copy_async_commit();

  // All groups of a block make as many rounds, idle ones too: there are barriers inside.
  int stage = 0;
  for (int first = blockIdx.y * kWindows; first < call.windows; first += step, window += step, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this window is here, and nobody works on what the next one overwrites
    if (window + step < call.windows) copy.start(raw_window(stage ^ 1), kRawStride, window + step, call);
    copy_async_commit();
    T* qkv = wide + (kInt8 ? group : stage * kWindows + group) * kWide;
    if constexpr (kInt8) {
      widen<3 * kRows, kStride, kRawStride>(qkv, raw_window(stage), rows_of_group);
      __syncthreads();
    }
    if (window >= call.windows) continue;
    T* own = qkv + first_row * kStride;
    std::uint32_t q[HeadTiles][4];
#pragma unroll
    for (int h = 0; h < HeadTiles; ++h) load_left(q[h], own + h * 16, kStride, lane);
    float scores[2 * RowTiles][4];
    if constexpr (kInt8) {
      clear(scores);
    } else {
      start_from_bias<T>(scores, bias);
    }
    add_scores<T, HeadTiles, RowTiles>(scores, q, qkv + kRows * kStride, kStride, lane);
    if constexpr (kInt8) scale_and_add_bias<T>(scores, bias, call.score_scale);
    float sums[2];
    softmax_numerators(scores, sums);
    float context[2 * HeadTiles][4];
    clear(context);
    add_values<T, HeadTiles, RowTiles>(context, scores, qkv + 2 * kRows * kStride, kStride, lane);
    const float scale = kInt8 ? call.context_scale : 1.0f;
    const float scales[2] = {__fdividef(scale, sums[0]), __fdividef(scale, sums[1])};
    Stored* to = static_cast<Stored*>(call.context) +
                 (static_cast<std::int64_t>(window) * tokens + first_row) * call.dim + head * call.head_dim;
    leave<Stored, T, HeadTiles>(to, rows_of_warp, tokens - first_row < 16 ? tokens - first_row : 16, call, own, context,
                                scales, lane);
  }
}

template <typename T, typename Stored, int HeadTiles, int RowTiles>
int start(const Call& call, void* stream) {
  Device device;
  if (const int error = current_device(device)) return error;
  constexpr int shared_bytes = resident_shared_bytes(RowTiles, HeadTiles, sizeof(Stored) == 1);
  const int blocks =
      resident_blocks_per_head(call.windows, call.heads, RowTiles, HeadTiles, sizeof(Stored) == 1, device);
  const dim3 grid(static_cast<unsigned>(call.heads), static_cast<unsigned>(blocks));
  return launch(resident_kernel<T, Stored, HeadTiles, RowTiles>, grid, windows_per_block(RowTiles) * RowTiles * kLanes,
                shared_bytes, stream, call);
}

template <typename T, typename Stored, int HeadTiles>
int start(const Call& call, void* stream) {
  switch (tiles_of(call.tokens)) {
    case 1: return start<T, Stored, HeadTiles, 1>(call, stream);
    case 2: return start<T, Stored, HeadTiles, 2>(call, stream);
    case 3: return start<T, Stored, HeadTiles, 3>(call, stream);
    case 4: return start<T, Stored, HeadTiles, 4>(call, stream);
    default: return start<T, Stored, HeadTiles, 5>(call, stream);
  }
}

template <typename T, typename Stored>
int start(const Call& call, void* stream) {
  switch (head_tiles(call.head_dim)) {
    case 2: return start<T, Stored, 2>(call, stream);
    case 3: return start<T, Stored, 3>(call, stream);
    case 4: return start<T, Stored, 4>(call, stream);
    default: return start<T, Stored, 5>(call, stream);
  }
}

}  // namespace

int resident(const Call& call, int dtype, void* stream) {
  switch (dtype) {
    case FASTERVIT_FLOAT16: return start<__half, __half>(call, stream);
    case FASTERVIT_BFLOAT16: return start<__nv_bfloat16, __nv_bfloat16>(call, stream);
    default: return start<__half, std::int8_t>(call, stream);
  }
}

}  // namespace fastervit::window_attention
