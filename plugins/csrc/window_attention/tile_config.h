// Sizes that the kernels of WindowAttention are made of, and why; no other file holds a tuning constant.
#ifndef FASTERVIT_WINDOW_ATTENTION_TILE_CONFIG_H
#define FASTERVIT_WINDOW_ATTENTION_TILE_CONFIG_H

#include "../common/launch.h"

namespace fastervit::window_attention {

constexpr int kMultiple = 8;      // head dims: 16-byte rows of a head, the unit of every copy
constexpr int kMaxHeadDim = 80;   // FasterViT-5 and -6; beyond, accumulators would crowd the registers
constexpr int kMaxResident = 80;  // tokens: windows of 8 with 16 carriers; 5 tiles of scores are 40 registers

__host__ __device__ constexpr int tiles_of(int size) { return (size + 15) / 16; }

// Head dims are padded with zeros to whole tensor-core steps of 16, at least 2: 32, 48, 64, 80.
__host__ __device__ constexpr int head_tiles(int head_dim) { return tiles_of(head_dim) < 2 ? 2 : tiles_of(head_dim); }

// One warp per 16 queries. Small windows share a block, so that it has about four warps: fewer leave a multiprocessor's
// four schedulers idle at the end of a block, more wait for the slowest at every barrier.
__host__ __device__ constexpr int windows_per_block(int row_tiles) { return row_tiles >= 3 ? 1 : 4 / row_tiles; }

// Two stages: while one window is worked on, the next is under way. A multiprocessor holds several blocks, so that far
// more bytes are in flight than latency times bandwidth asks (about 25 KB on an H200).
constexpr int kStages = 2;

// Elements of 16 bits of one q, k or v of one window in shared memory.
__host__ __device__ constexpr int matrix_elements(int row_tiles, int head_tiles) {
  return row_tiles * 16 * (head_tiles * 16 + 8);
}

// Dynamic shared memory of a resident block, bytes. int8 windows arrive raw (two stages) and are widened to one fp16 copy.
__host__ __device__ constexpr int resident_shared_bytes(int row_tiles, int head_tiles, bool int8) {
  const int windows = windows_per_block(row_tiles);
  const int wide = 3 * matrix_elements(row_tiles, head_tiles) * 2;
  const int raw = 3 * row_tiles * 16 * head_tiles * 16;
  return windows * (int8 ? wide + kStages * raw : kStages * wide);
}

constexpr int kSystemShared = 1024;  // bytes that every block takes besides its own

// Shared memory of the multiprocessor that is compiled for, where it may be what limits the number of blocks.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr int kCompiledShared = 100 * 1024;
#else
constexpr int kCompiledShared = 164 * 1024;
#endif

// Blocks that a multiprocessor is to hold, for the compiler's choice of registers (64 K of them, given to four schedulers
// evenly): five blocks of four warps leave 96 a thread, four 128, three 168, two 255 (of five warps 168). One more makes
// these sizes spill (int8 holds more addresses); more than shared memory allows would only cost registers.
__host__ __device__ constexpr int resident_min_blocks(int row_tiles, int head_tiles, bool int8) {
  const int registers_allow = row_tiles + head_tiles <= 4         ? 5
                              : row_tiles + head_tiles <= 6       ? (int8 ? 3 : 4)
                              : row_tiles == 5 && head_tiles >= 3 ? 1
                                                                  : 2;
  const int memory_allows = kCompiledShared / (resident_shared_bytes(row_tiles, head_tiles, int8) + kSystemShared);
  return memory_allows < 1 ? 1 : memory_allows < registers_allow ? memory_allows : registers_allow;
}

// Blocks per head that walk over the windows: enough to fill the GPU once. A block keeps its head's bias in registers
// for all windows that it meets, so more blocks only mean loading it more often.
inline int resident_blocks_per_head(int windows, int heads, int row_tiles, int head_tiles, bool int8,
                                    const Device& device) {
  const int registers_allow = resident_min_blocks(row_tiles, head_tiles, int8);
  const int memory_allows =
      device.shared_memory_per_multiprocessor / (resident_shared_bytes(row_tiles, head_tiles, int8) + kSystemShared);
  const int resident = memory_allows < 1 ? 1 : memory_allows < registers_allow ? memory_allows : registers_allow;
  const int filling = (device.multiprocessors * resident + heads - 1) / heads;
  const int of_windows = (windows + windows_per_block(row_tiles) - 1) / windows_per_block(row_tiles);
  return filling < of_windows ? filling : of_windows;
}

// Streamed: four warps of 16 queries; 64 keys a step make 32 registers of scores and divide every large window in use.
constexpr int kStreamedRowTiles = 4;
constexpr int kStreamedKeyTiles = 4;

__host__ __device__ constexpr int streamed_shared_bytes(int head_tiles) {
  const int queries = matrix_elements(kStreamedRowTiles, head_tiles);
  const int keys_and_values = 2 * matrix_elements(kStreamedKeyTiles, head_tiles);
  return (queries + kStages * keys_and_values) * 2;
}

// Plain: four queries a block, one warp each; their scores in shared memory bound the number of tokens.
constexpr int kPlainQueries = 4;
constexpr int kPlainMaxTokens = 3072;  // 48 KB of scores, what every GPU gives without opt-in

}  // namespace fastervit::window_attention

#endif  // FASTERVIT_WINDOW_ATTENTION_TILE_CONFIG_H
