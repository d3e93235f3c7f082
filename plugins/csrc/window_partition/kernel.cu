// tokens[window, R + t] = map[pixel t of window] + table[R + t]
// tokens[window, r]     = carriers[pixel r of window] + table[r]
// FasterViT (arXiv 2306.06189) §3: a map becomes windows of tokens, each led by its R = side² carriers.
//
// Legend: B images, C channels, H x W map, w side of a window, N = R + w² rows of a window.
//
// Global memory: map (B, C, H, W) or (B, H, W, C); carriers alike, H/w·side x W/w·side; table (N, C);
// tokens (B · H/w · W/w, N, C). Shared memory, for planes (NCHW) only: [positions][channels + padding] of a tile.
//
// Staircase:
//   1  a thread per element of the result: reads of planes are strided by H·W, a sector for every element
//   2  a tile of positions x channels through shared memory: both sides coalesced, a few bytes per access
//   3  (this one) a thread gathers a unit of 16 bytes, one position of several channels, before shared memory: there
//      and to tokens all accesses have 16 bytes, free of bank conflicts. Positions are numbered through all images, so
//      small maps leave no thread idle; the table arrives while the map does; carriers are the launch's last blocks
#include <algorithm>
#include <cstdint>

#include "../common/launch.h"
#include "../common/numeric.h"
#include "../common/window_tile.h"
#include "kernel.h"
#include "tile_config.h"

namespace fastervit::window_partition {
namespace {

// Maps whose positions become rows of windows, from `first_row` on.
struct Source {
  const void* maps;
  WindowGrid grid;
  int first_row;
};

struct Parameters {
  void* tokens;
  const void* table;
  Source map;
  Source carriers;
  std::uint32_t map_tiles;  // blocks from here on are of carriers
  int channels;
  std::int64_t window_elements;  // N · C
};

template <typename T, int Size, bool ChannelsLast>
__global__ void __launch_bounds__(TileConfig::threads, TileConfig::blocks(Size)) partition(Parameters p) {
  using Tile = WindowTile<T, Size, TileConfig>;
  using Units = Unit<T, Size>;

  const bool of_carriers = blockIdx.x >= p.map_tiles;
  const Source source = of_carriers ? p.carriers : p.map;
  const T* maps = static_cast<const T*>(source.maps);
  const std::uint32_t first = (blockIdx.x - (of_carriers ? p.map_tiles : 0)) * Tile::positions;
  const int first_channel = static_cast<int>(blockIdx.y) * Tile::channels;
  // Threads past the last position or channel read the last one, so that no load waits for a condition.
  const auto clamped = [&](int offset) { return min(first + offset, source.grid.positions - 1); };
  const int channel = min(first_channel + Tile::row_channel(), p.channels - Size);

  Units moved[Tile::units];
#pragma unroll
  for (int i = 0; i < Tile::units; ++i) {
    if constexpr (ChannelsLast) {
      moved[i] = Units::at(maps + std::int64_t{clamped(Tile::row_position(i))} * p.channels + channel);
    } else {
      const int c = min(first_channel + Tile::plane_channel(i), p.channels - Size);
      const T* pixel = maps + source.grid.in_planes(clamped(Tile::plane_position()), c, p.channels);
#pragma unroll
      for (int k = 0; k < Size; ++k) moved[i].x[k] = pixel[std::int64_t{k} * source.grid.area.value];
    }
  }

  std::int64_t element[Tile::units];  // of tokens
  Units table[Tile::units];
#pragma unroll
  for (int i = 0; i < Tile::units; ++i) {
    const Place place = source.grid.place(clamped(Tile::row_position(i)));
    const std::uint32_t row = source.first_row + place.y * source.grid.side.value + place.x;
    const std::int64_t in_window = std::int64_t{row} * p.channels + channel;
    element[i] = place.window * p.window_elements + in_window;
    table[i] = Units::at(static_cast<const T*>(p.table) + in_window);
  }

  if constexpr (!ChannelsLast) {
    T* shared = reinterpret_cast<T*>(dynamic_shared());
#pragma unroll
    for (int i = 0; i < Tile::units; ++i) {
      moved[i].store(shared + Tile::plane_position() * Tile::pitch + Tile::plane_channel(i));
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Tile::units; ++i) {
      moved[i] = Units::at(shared + Tile::row_position(i) * Tile::pitch + Tile::row_channel());
    }
  }

#pragma unroll
  for (int i = 0; i < Tile::units; ++i) {
#pragma unroll
    for (int k = 0; k < Size; ++k) {
      moved[i].x[k] = from_float<T>(to_float(moved[i].x[k]) + to_float(table[i].x[k]));
    }
    if (first + Tile::row_position(i) < source.grid.positions && first_channel + Tile::row_channel() < p.channels) {
      moved[i].store(static_cast<T*>(p.tokens) + element[i]);
    }
  }
}

template <typename T, int Size, bool ChannelsLast>
int launch_tiles(Parameters p, void* stream) {
  using Tile = WindowTile<T, Size, TileConfig>;
  p.map_tiles = Tile::tiles(p.map.grid);
  const dim3 grid(p.map_tiles + Tile::tiles(p.carriers.grid), Tile::channel_tiles(p.channels));
  const int shared_bytes = ChannelsLast ? 0 : Tile::shared_bytes;
  return launch(partition<T, Size, ChannelsLast>, grid, TileConfig::threads, shared_bytes, stream, p);
}

template <typename T>
int launch_dtype(const Parameters& p, bool channels_last, void* stream) {
  constexpr int size = Vector<T>::size;
  if (p.channels % size == 0) {
    return channels_last ? launch_tiles<T, size, true>(p, stream) : launch_tiles<T, size, false>(p, stream);
  }
  return channels_last ? launch_tiles<T, 1, true>(p, stream) : launch_tiles<T, 1, false>(p, stream);
}

}  // namespace
}  // namespace fastervit::window_partition

const char* fastervit_window_partition_unsupported(int dtype, int channels, int height, int width, int window,
                                                   int carriers_per_window, int) {
  const char* name = carriers_per_window != 0 ? "WindowPartitionWithCarriers" : "WindowPartition";
  return fastervit::refuse_windows(name, dtype, channels, height, width, window, carriers_per_window, /*square=*/true);
}

int fastervit_window_partition(void* tokens, const void* map, const void* carriers, const void* table, int dtype,
                               int batch, int channels, int height, int width, int window, int carriers_per_window,
                               int channels_last, void* stream) {
  using namespace fastervit;
  if (batch < 0 || fastervit_window_partition_unsupported(dtype, channels, height, width, window, carriers_per_window,
                                                          channels_last) != nullptr) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (height == 0 || width == 0) return 0;

  const int side = carrier_side(carriers_per_window), down = height / window, across = width / window;
  const std::int64_t pixels = height * width, carriers_of_image = down * across * carriers_per_window;
  const std::int64_t bytes = std::int64_t{channels} * (dtype == FASTERVIT_FLOAT32 ? 4 : 2);  // of a position
  return for_image_groups(batch, std::max(pixels, carriers_of_image), [&](std::int64_t first, int images) {
    window_partition::Parameters p{};
    p.tokens = static_cast<char*>(tokens) + first * (pixels + carriers_of_image) * bytes;
    p.table = table;
    p.map = {static_cast<const char*>(map) + first * pixels * bytes, WindowGrid::of(images, height, width, window),
             carriers_per_window};
    if (side > 0) {
      p.carriers = {static_cast<const char*>(carriers) + first * carriers_of_image * bytes,
                    WindowGrid::of(images, down * side, across * side, side), 0};
    }
    p.channels = channels;
    p.window_elements = (std::int64_t{window} * window + carriers_per_window) * channels;
    switch (dtype) {
      case FASTERVIT_FLOAT32: return window_partition::launch_dtype<float>(p, channels_last != 0, stream);
      case FASTERVIT_FLOAT16: return window_partition::launch_dtype<__half>(p, channels_last != 0, stream);
      default: return window_partition::launch_dtype<__nv_bfloat16>(p, channels_last != 0, stream);
    }
  });
}
