// map[pixel t of window] = tokens[window, R + t] (+ gamma · tokens[window, nearest carrier of t])
// FasterViT (arXiv 2306.06189) §3: windows of tokens become a map again; carriers are dropped, or upsampled into their
// window (nearest neighbour) with a weight per channel.
//
// Legend: B images, C channels, H x W map, w side of a window, R = side² carriers and N = R + w² rows of a window.
//
// Global memory: tokens (B · H/w · W/w, N, C); gamma (C); map (B, C, H, W) or (B, H, W, C).
// Shared memory, for planes (NCHW) only: [positions][channels + padding] of a tile.
//
// Staircase:
//   1  a thread per element of the result: either reads or, for planes, writes are strided
//   2  a tile of positions x channels through shared memory: both sides coalesced, a few bytes per access
//   3  (this one) units of 16 bytes from tokens through shared memory, free of bank conflicts; only a plane's elements
//      leave one by one, as neighbours. Positions are numbered through all images, so small maps leave no thread idle;
//      a token and its carrier are read at once and summed before shared memory
#include <cstdint>

#include "../common/launch.h"
#include "../common/numeric.h"
#include "../common/window_tile.h"
#include "kernel.h"
#include "tile_config.h"

namespace fastervit::window_reverse {
namespace {

struct Parameters {
  void* map;
  const void* tokens;
  const void* gamma;
  WindowGrid grid;
  int channels;
  int carriers;                  // R
  int carrier_side;              // where gamma is
  std::int64_t window_elements;  // N · C
};

template <typename T, int Size, bool ChannelsLast>
__global__ void __launch_bounds__(TileConfig::threads) reverse(Parameters p) {
  using Tile = WindowTile<T, Size, TileConfig>;
  using Units = Unit<T, Size>;

  const std::uint32_t first = blockIdx.x * Tile::positions;
  const int first_channel = static_cast<int>(blockIdx.y) * Tile::channels;
  // Threads past the last position or channel read the last one, so that no load waits for a condition.
  const int channel = min(first_channel + Tile::row_channel(), p.channels - Size);

  Units moved[Tile::units];
  Units carried[Tile::units];
#pragma unroll
  for (int i = 0; i < Tile::units; ++i) {
    const Place place = p.grid.place(min(first + Tile::row_position(i), p.grid.positions - 1));
    const T* window = static_cast<const T*>(p.tokens) + place.window * p.window_elements + channel;
    const std::uint32_t row = p.carriers + place.y * p.grid.side.value + place.x;
    moved[i] = Units::at(window + std::int64_t{row} * p.channels);
    if (p.gamma != nullptr) {
      const std::uint32_t y = p.grid.side.quotient(place.y * p.carrier_side);
      const std::uint32_t x = p.grid.side.quotient(place.x * p.carrier_side);
      carried[i] = Units::at(window + std::int64_t{y * p.carrier_side + x} * p.channels);
    }
  }
  if (p.gamma != nullptr) {
    const Units gamma = Units::at(static_cast<const T*>(p.gamma) + channel);
#pragma unroll
    for (int i = 0; i < Tile::units; ++i) {
#pragma unroll
      for (int k = 0; k < Size; ++k) {
        moved[i].x[k] = from_float<T>(fmaf(to_float(gamma.x[k]), to_float(carried[i].x[k]), to_float(moved[i].x[k])));
      }
    }
  }

  T* map = static_cast<T*>(p.map);
  if constexpr (ChannelsLast) {
#pragma unroll
    for (int i = 0; i < Tile::units; ++i) {
      const std::uint32_t position = first + Tile::row_position(i);
      if (position < p.grid.positions && first_channel + Tile::row_channel() < p.channels) {
        moved[i].store(map + std::int64_t{position} * p.channels + channel);
      }
    }
  } else {
    T* shared = reinterpret_cast<T*>(dynamic_shared());
#pragma unroll
    for (int i = 0; i < Tile::units; ++i) {
      moved[i].store(shared + Tile::row_position(i) * Tile::pitch + Tile::row_channel());
    }
    __syncthreads();
    const std::uint32_t position = first + Tile::plane_position();
    if (position >= p.grid.positions) return;
#pragma unroll
    for (int i = 0; i < Tile::units; ++i) {
      const int c = Tile::plane_channel(i);
      if (first_channel + c >= p.channels) continue;
      const Units unit = Units::at(shared + Tile::plane_position() * Tile::pitch + c);
      T* pixel = map + p.grid.in_planes(position, first_channel + c, p.channels);
#pragma unroll
      for (int k = 0; k < Size; ++k) pixel[std::int64_t{k} * p.grid.area.value] = unit.x[k];
    }
  }
}

template <typename T, int Size, bool ChannelsLast>
int launch_tiles(const Parameters& p, void* stream) {
  using Tile = WindowTile<T, Size, TileConfig>;
  const dim3 grid(Tile::tiles(p.grid), Tile::channel_tiles(p.channels));
  const int shared_bytes = ChannelsLast ? 0 : Tile::shared_bytes;
  return launch(reverse<T, Size, ChannelsLast>, grid, TileConfig::threads, shared_bytes, stream, p);
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
}  // namespace fastervit::window_reverse

const char* fastervit_window_reverse_unsupported(int dtype, int channels, int height, int width, int window,
                                                 int carriers_per_window, int propagates, int) {
  const char* name = propagates != 0            ? "WindowReverseWithPropagation"
                     : carriers_per_window != 0 ? "WindowReverseWithCarriers"
                                                : "WindowReverse";
  if (propagates != 0 && carriers_per_window == 0) {
    return fastervit::refusal("%s: no carriers to propagate; serves 1, 4, 9 ... side² of a window", name);
  }
  return fastervit::refuse_windows(name, dtype, channels, height, width, window, carriers_per_window,
                                   /*square=*/propagates != 0);
}

int fastervit_window_reverse(void* map, const void* tokens, const void* gamma, int dtype, int batch, int channels,
                             int height, int width, int window, int carriers_per_window, int channels_last,
                             void* stream) {
  using namespace fastervit;
  if (batch < 0 || fastervit_window_reverse_unsupported(dtype, channels, height, width, window, carriers_per_window,
                                                        gamma != nullptr, channels_last) != nullptr) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (height == 0 || width == 0) return 0;

  const std::int64_t pixels = height * width, windows = height / window * (width / window);
  const std::int64_t bytes = std::int64_t{channels} * (dtype == FASTERVIT_FLOAT32 ? 4 : 2);  // of a position
  return for_image_groups(batch, pixels, [&](std::int64_t first, int images) {
    window_reverse::Parameters p{};
    p.map = static_cast<char*>(map) + first * pixels * bytes;
    p.tokens = static_cast<const char*>(tokens) + first * (pixels + windows * carriers_per_window) * bytes;
    p.gamma = gamma;
    p.grid = WindowGrid::of(images, height, width, window);
    p.channels = channels;
    p.carriers = carriers_per_window;
    p.carrier_side = gamma != nullptr ? carrier_side(carriers_per_window) : 0;
    p.window_elements = (std::int64_t{window} * window + carriers_per_window) * channels;
    switch (dtype) {
      case FASTERVIT_FLOAT32: return window_reverse::launch_dtype<float>(p, channels_last != 0, stream);
      case FASTERVIT_FLOAT16: return window_reverse::launch_dtype<__half>(p, channels_last != 0, stream);
      default: return window_reverse::launch_dtype<__nv_bfloat16>(p, channels_last != 0, stream);
    }
  });
}
