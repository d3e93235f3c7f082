// Sizes that the kernels of CarrierAttention are made of, and why; no other file holds a tuning constant.
#ifndef FASTERVIT_CARRIER_ATTENTION_TILE_CONFIG_H
#define FASTERVIT_CARRIER_ATTENTION_TILE_CONFIG_H

#include "../common/launch.h"
#include "../window_attention/tile_config.h"

namespace fastervit::carrier_attention {

using window_attention::head_tiles;
using window_attention::tiles_of;

// Staged: 64 x 64 results a block of four warps, 32 x 32 each, so that every fragment from shared memory serves two
// products; 32 channels a step are two tensor-core steps between barriers in 20 KB. The carriers of a batch are few rows
// (16 an image): larger tiles would leave multiprocessors without one.
constexpr int kTileRows = 64;
constexpr int kTileColumns = 64;
constexpr int kTileDepth = 32;
constexpr int kStagedThreads = 128;
constexpr int kStagedBlocks = 4;  // of a multiprocessor: left to itself the compiler aims higher and spills

// Plain: one thread per result of a 16 x 16 tile.
constexpr int kPlainTile = 16;

// Fused: eight warps a block share an image's carriers: a warp takes 16 rows of one head, so fewer rows mean more heads
// at once, and a softmax row never leaves its warp.
constexpr int kFusedWarps = 8;
constexpr int kFusedMaxRows = 64;

__host__ __device__ constexpr int fused_row_tiles(int rows) { return rows <= 16 ? 1 : rows <= 32 ? 2 : 4; }
__host__ __device__ constexpr int heads_at_once(int row_tiles) { return kFusedWarps / row_tiles; }

// Columns of the projection that one warp makes at once: 32 registers of sums.
constexpr int kProjectionColumns = 64;

// Elements of 16 bits that the weights on their way, two stages, and later the keys and values of the heads at once take.
__host__ __device__ constexpr int fused_weight_elements(int row_tiles, int head_tiles, int depth) {
  const int weights = 2 * heads_at_once(row_tiles) * 3 * head_tiles * 16 * (depth + 8);
  const int keys_and_values = heads_at_once(row_tiles) * 2 * row_tiles * 16 * (head_tiles * 16 + 8);
  return weights > keys_and_values ? weights : keys_and_values;
}

// Dynamic shared memory, bytes: normalised rows, context of all heads, and the weights.
constexpr int fused_shared_bytes(int rows, int channels, int heads, int head_dim, int depth) {
  const int row_tiles = fused_row_tiles(rows);
  const int matrices = row_tiles * 16 * (channels + 8 + heads * head_dim + 8);
  return 2 * (matrices + fused_weight_elements(row_tiles, head_tiles(head_dim), depth));
}

// Channels of weights that a step brings: 32 where that fits, half as many (and twice the barriers) where only that does,
// 0 where nothing does.
constexpr int fused_depth(int rows, int channels, int heads, int head_dim, int shared_memory) {
  for (int depth = 32; depth >= 16; depth /= 2) {
    if (fused_shared_bytes(rows, channels, heads, head_dim, depth) <= shared_memory) return depth;
  }
  return 0;
}

}  // namespace fastervit::carrier_attention

#endif  // FASTERVIT_CARRIER_ATTENTION_TILE_CONFIG_H
