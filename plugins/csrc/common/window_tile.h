// What WindowPartition and WindowReverse share: what they serve, where a position of a map lies among rows of tokens,
// and how the threads of a block divide a tile of positions x channels.
//
// Positions of all images are numbered one after another, row-major in each. A plane is the map of one channel.
#ifndef FASTERVIT_COMMON_WINDOW_TILE_H
#define FASTERVIT_COMMON_WINDOW_TILE_H

#include <algorithm>
#include <climits>
#include <cstdint>

#include "numeric.h"
#include "refusal.h"
#include "types.h"

namespace fastervit {

constexpr int max_tile_positions = 1024;
constexpr int max_positions = INT_MAX - max_tile_positions;  // of a launch: numbers take 31 bits, also in its last tile
constexpr int max_channels = 1 << 20;                        // whose tiles are y of the launch grid, up to 65535

// √carriers where that is an integer, else -1.
inline int carrier_side(int carriers) {
  std::int64_t side = 0;
  while (side * side < carriers) ++side;
  return side * side == carriers ? static_cast<int>(side) : -1;
}

// Why `name` does not serve a case, or null. `square`: the carriers of a window must form a square.
inline const char* refuse_windows(const char* name, int dtype, int channels, int height, int width, int window,
                                  int carriers, bool square) {
  if (dtype != FASTERVIT_FLOAT32 && dtype != FASTERVIT_FLOAT16 && dtype != FASTERVIT_BFLOAT16) {
    return refusal("%s: tensors of %s; serves fp32, fp16 and bf16", name, dtype_name(dtype));
  }
  if (channels < 1 || channels > max_channels) {
    return refusal("%s: %d channels; serves 1 to %d", name, channels, max_channels);
  }
  if (window < 1 || height < 0 || width < 0 || height % window != 0 || width % window != 0) {
    return refusal("%s: windows of %d x %d on a %d x %d map; serves maps that whole windows cover", name, window,
                   window, height, width);
  }
  if (carriers < 0 || (square && carrier_side(carriers) < 0)) {
    return refusal("%s: %d carriers per window; serves %s", name, carriers,
                   square ? "0, 1, 4, 9 ... side²" : "0 or more");
  }
  const std::int64_t area = std::int64_t{height} * width;
  const std::int64_t windows = area / window / window;
  if (area > max_positions || windows * carriers > max_positions) {
    return refusal("%s: a %d x %d map with %d carriers per window; serves up to %d pixels, and carriers, of an image",
                   name, height, width, carriers, max_positions);
  }
  return nullptr;
}

// Division of any n < 2^31 by a number that only the host knows, in 3 instructions where `/` takes some 20.
// With 2^s >= value, p = 2^(31 + s) and m = ceil(p / value), m · value - p < value <= 2^s. So n · m / p exceeds
// n / value by n · (m · value - p) / (value · p) < 2^31 · 2^s / (value · p) = 1 / value: short of the next integer.
struct Divisor {
  std::uint32_t value;
  std::uint32_t multiplier;  // m
  std::uint32_t shift;       // s

  static Divisor of(int value) {
    std::uint32_t shift = 0;
    while ((std::uint64_t{1} << shift) < static_cast<std::uint32_t>(value)) ++shift;
    const std::uint64_t power = std::uint64_t{1} << (31 + shift);
    return {static_cast<std::uint32_t>(value), static_cast<std::uint32_t>((power + value - 1) / value), shift};
  }

  __device__ __forceinline__ std::uint32_t quotient(std::uint32_t n) const {
    return static_cast<std::uint32_t>((std::uint64_t{2 * n} * multiplier) >> 32) >> shift;
  }
};

// Where a position lies: window of all images, line and column in it.
struct Place {
  std::uint32_t window, y, x;
};

// Maps of equal size, cut into square windows. No side is 0.
struct WindowGrid {
  Divisor area, width, side;     // positions of an image, of a line of it, of a line of a window
  std::uint32_t windows_across;  // in a line of windows
  std::uint32_t positions;       // of all images

  static WindowGrid of(int images, int height, int width, int side) {
    return {Divisor::of(height * width), Divisor::of(width), Divisor::of(side),
            static_cast<std::uint32_t>(width / side), static_cast<std::uint32_t>(images * height * width)};
  }

  // Lines of all images follow one another, and windows fill whole images, so no image need be told from the next.
  __device__ __forceinline__ Place place(std::uint32_t position) const {
    const std::uint32_t line = width.quotient(position);
    const std::uint32_t x = position - line * width.value;
    const std::uint32_t row = side.quotient(line);
    const std::uint32_t column = side.quotient(x);
    return {row * windows_across + column, line - row * side.value, x - column * side.value};
  }

  // Elements before `channel` of a position in planes (images, channels, height, width).
  __device__ __forceinline__ std::int64_t in_planes(std::uint32_t position, int channel, int channels) const {
    const std::uint32_t image = area.quotient(position);
    return (std::int64_t{image} * channels + channel) * area.value + (position - image * area.value);
  }
};

// Calls launch(first image, images), which returns a cudaError_t, for groups of images whose positions can be numbered.
template <typename Launch>
int for_image_groups(int batch, std::int64_t positions_of_image, const Launch& launch) {
  const std::int64_t group = max_positions / positions_of_image;
  for (std::int64_t first = 0; first < batch; first += group) {
    const int error = launch(first, static_cast<int>(std::min(group, batch - first)));
    if (error != 0) return error;
  }
  return 0;
}

// Consecutive channels of one position that move together.
template <typename T, int Size>
struct alignas(Size * sizeof(T)) Unit {
  T x[Size];

  __device__ __forceinline__ static Unit at(const T* address) { return *reinterpret_cast<const Unit*>(address); }
  __device__ __forceinline__ void store(T* address) const { *reinterpret_cast<Unit*>(address) = *this; }
};

// The tile of one block. Its units are divided among the threads twice, so that neighbouring threads touch neighbouring
// memory: along channels for tokens and channels-last maps, along positions for planes. Shared memory carries them from
// one division to the other, a row of channels per position.
template <typename T, int Size, typename Config>
struct WindowTile {
  static constexpr int positions = Config::positions;
  static constexpr int channels = Config::channels(Size, sizeof(T));
  static constexpr int units_of_row = channels / Size;
  static constexpr int units = positions * units_of_row / Config::threads;  // of one thread
  // Rows are padded by one unit (at least a bank of 4 bytes), so that neither division meets bank conflicts: neighbours
  // along positions are then an odd number of banks apart, or of groups of 4 banks (9) where units have 16 bytes.
  static constexpr int padding = Size * sizeof(T) > 4 ? Size : 4 / static_cast<int>(sizeof(T));
  static constexpr int pitch = channels + padding;
  static constexpr int shared_bytes = positions * pitch * static_cast<int>(sizeof(T));

  static_assert(pitch * static_cast<int>(sizeof(T)) / std::max<int>(Size * sizeof(T), 4) % 2 == 1, "no bank conflicts");
  static_assert(Config::threads % units_of_row == 0, "along channels, a thread keeps its channels");
  static_assert(Config::threads % positions == 0, "along positions, a thread keeps its position");
  static_assert(units >= 1 && positions <= max_tile_positions && max_channels / channels <= 65535, "limits above");

  // Blocks that cover all positions, and all channels.
  static std::uint32_t tiles(const WindowGrid& grid) { return (grid.positions + positions - 1) / positions; }
  static std::uint32_t channel_tiles(int of) { return static_cast<std::uint32_t>((of + channels - 1) / channels); }

  // Along channels: unit `i` of this thread.
  __device__ __forceinline__ static int row_position(int i) {
    return static_cast<int>(threadIdx.x / units_of_row) + i * (Config::threads / units_of_row);
  }
  __device__ __forceinline__ static int row_channel() { return static_cast<int>(threadIdx.x % units_of_row) * Size; }

  // Along positions: unit `i` of this thread.
  __device__ __forceinline__ static int plane_position() { return static_cast<int>(threadIdx.x % positions); }
  __device__ __forceinline__ static int plane_channel(int i) {
    return (static_cast<int>(threadIdx.x / positions) + i * (Config::threads / positions)) * Size;
  }
};

}  // namespace fastervit

#endif  // FASTERVIT_COMMON_WINDOW_TILE_H
