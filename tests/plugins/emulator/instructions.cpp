// What the lanes of a warp do together.
#include <cstring>

#include "include/cuda_bf16.h"
#include "include/cuda_fp16.h"
#include "state.h"

namespace fastervit::emulator {
namespace {

template <typename T>
T& operand(Thread& thread) {
  return *static_cast<T*>(thread.operand);
}

void nothing(Thread*, int) {}

void shuffle(Thread* warp, int lanes) {
  std::uint64_t values[kLanes];
  for (int i = 0; i < lanes; ++i) values[i] = operand<Shuffle>(warp[i]).value;
  for (int i = 0; i < lanes; ++i) {
    const int source = operand<Shuffle>(warp[i]).source;
    if (source < 0 || source >= lanes) {
      fail(&warp[i], warp[i].site, nullptr, "a shuffle from lane %d of %d", source, lanes);
    }
    operand<Shuffle>(warp[i]).value = values[source];
  }
}

void ballot(Thread* warp, int lanes) {
  std::uint64_t votes = 0;
  for (int i = 0; i < lanes; ++i) votes |= operand<std::uint64_t>(warp[i]) << i;
  for (int i = 0; i < lanes; ++i) operand<std::uint64_t>(warp[i]) = votes;
}

float low(std::uint32_t bits, __half) { return __half2float({static_cast<unsigned short>(bits)}); }
float low(std::uint32_t bits, __nv_bfloat16) { return __uint_as_float(bits << 16); }

// The layout of the operands: plugins/csrc/common/ptx.h.
template <typename T>
void mma(Thread* warp, int) {
  enum { kM = 16, kN = 8, kK = 16 };
  float a[kM][kK], b[kK][kN], d[kM][kN];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Mma& mma = operand<Mma>(warp[lane]);
    const int g = lane / 4, p = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, column = p + i / 2 * 8;
      a[row][column] = low(mma.a[i], T{});
      a[row][column + 1] = low(mma.a[i] >> 16, T{});
    }
    for (int i = 0; i < 2; ++i) {
      b[p + i * 8][g] = low(mma.b[i], T{});
      b[p + i * 8 + 1][g] = low(mma.b[i] >> 16, T{});
    }
    for (int i = 0; i < 4; ++i) d[g + i / 2 * 8][p + i % 2] = mma.d[i];
  }
  for (int m = 0; m < kM; ++m) {
    for (int k = 0; k < kK; ++k) {
      for (int n = 0; n < kN; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) operand<Mma>(warp[lane]).d[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
  }
}

template <bool Transposed>
void load_matrix(Thread* warp, int) {
  std::uint16_t matrices[4][8][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Thread& thread = warp[lane];
    const void* row = operand<LoadMatrix>(warp[lane]).row;
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
      fail(&thread, thread.site, nullptr, "ldmatrix from %p, which is no multiple of 16", row);
    }
    if (!is_shared(row, 16)) fail(&thread, thread.site, nullptr, "ldmatrix from %s", describe(row));
    check_access(thread, row, 16, kRead, thread.site);
    std::memcpy(matrices[lane / 8][lane % 8], row, 16);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, p = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      const auto& m = matrices[i];
      const std::uint32_t first = Transposed ? m[p][g] : m[g][p], second = Transposed ? m[p + 1][g] : m[g][p + 1];
      operand<LoadMatrix>(warp[lane]).r[i] = first | second << 16;
    }
  }
}

}  // namespace

//                                                                 whole warp, orders memory
const Collective kSyncWarp = {"__syncwarp", nothing, false, true};
const Collective kShuffle = {"a shuffle", shuffle, false, false};
const Collective kBallot = {"a ballot", ballot, false, false};
const Collective kMmaHalf = {"mma of fp16", mma<__half>, true, false};
const Collective kMmaBfloat16 = {"mma of bf16", mma<__nv_bfloat16>, true, false};
const Collective kLoadMatrix = {"ldmatrix", load_matrix<false>, true, false};
const Collective kLoadMatrixTransposed = {"ldmatrix.trans", load_matrix<true>, true, false};

}  // namespace fastervit::emulator
