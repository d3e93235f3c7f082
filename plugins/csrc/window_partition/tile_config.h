// Tuning constants of WindowPartition, each with its reason.
#ifndef FASTERVIT_WINDOW_PARTITION_TILE_CONFIG_H
#define FASTERVIT_WINDOW_PARTITION_TILE_CONFIG_H

namespace fastervit::window_partition {

struct TileConfig {
  // Read from 16-bit planes these are 128 bytes, 4 or 5 sectors as the plane lies, the outer ones shared with other
  // blocks. With 32 positions it would be 2 or 3.
  static constexpr int positions = 64;
  // Each thread has 32 bytes of the map in flight and as many of the table. 5 blocks on a multiprocessor make that
  // 40 KiB of the map, where latency times bandwidth is 25 KiB on an H200 (4.8 TB/s, 132 multiprocessors, some 700 ns).
  static constexpr int threads = 256;

  // Channels of a tile whose units are `size` elements of `bytes` each. Where units have 16 bytes, rows of 128: a line
  // of L2. Else a warp's worth: with twice that a thread has so many 16-bit elements that its registers spill.
  static constexpr int channels(int size, int bytes) { return size * bytes == 16 ? 128 / bytes : 32; }

  // Blocks on a multiprocessor, which say how many registers the compiler may use. 48 where units have 16 bytes: left
  // alone it takes 32, by waiting for half of the map before it asks for the table. 64 for units of one element, which
  // are more: with 48 some spill.
  static constexpr int blocks(int size) { return size > 1 ? 5 : 4; }
};

}  // namespace fastervit::window_partition

#endif  // FASTERVIT_WINDOW_PARTITION_TILE_CONFIG_H
