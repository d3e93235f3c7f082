// Tuning constants of WindowReverse, each with its reason.
#ifndef FASTERVIT_WINDOW_REVERSE_TILE_CONFIG_H
#define FASTERVIT_WINDOW_REVERSE_TILE_CONFIG_H

namespace fastervit::window_reverse {

struct TileConfig {
  // Written to 16-bit planes these are 128 bytes, 4 or 5 sectors as the plane lies, the outer ones shared with other
  // blocks. With 32 positions it would be 2 or 3.
  static constexpr int positions = 64;
  // Each thread has 32 bytes in flight (64 with carriers), and 5 or more blocks fit a multiprocessor (registers):
  // 40 KiB, where latency times bandwidth is 25 KiB on an H200 (4.8 TB/s, 132 multiprocessors, some 700 ns).
  static constexpr int threads = 256;

  // Channels of a tile whose units are `size` elements of `bytes` each. Where units have 16 bytes, rows of 128: a line
  // of L2. Else a warp's worth: with twice that a thread has so many 16-bit elements that its registers spill.
  static constexpr int channels(int size, int bytes) { return size * bytes == 16 ? 128 / bytes : 32; }
};

}  // namespace fastervit::window_reverse

#endif  // FASTERVIT_WINDOW_REVERSE_TILE_CONFIG_H
