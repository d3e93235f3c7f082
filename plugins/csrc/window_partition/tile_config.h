// Tuning constants of WindowPartition, each with its reason.
#ifndef FASTERVIT_WINDOW_PARTITION_TILE_CONFIG_H
#define FASTERVIT_WINDOW_PARTITION_TILE_CONFIG_H

namespace fastervit::window_partition {

struct TileConfig {
  // Read from 16-bit planes these are 128 bytes, 4 to 5 sectors as the plane lies: with 32 positions it were 2 to 3, of which
  // more are read twice.
  static constexpr int positions = 64;
  // Each thread has 32 bytes in flight, and 5 or more blocks fit a multiprocessor (registers): 40 KiB, where latency times
  // bandwidth is 25 KiB on an H200 (4.8 TB/s, 132 multiprocessors, some 700 ns).
  static constexpr int threads = 256;

  // Channels of a tile whose units are `size` elements of `bytes` each. Rows of 128 bytes, a line of L2, where units have
  // 16; else a warp's worth, because twice that gives a thread so many 16-bit elements that its registers spill.
  static constexpr int channels(int size, int bytes) { return size * bytes == 16 ? 128 / bytes : 32; }
};

}  // namespace fastervit::window_partition

#endif  // FASTERVIT_WINDOW_PARTITION_TILE_CONFIG_H
