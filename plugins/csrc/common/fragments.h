// Tensor-core fragments of attention: loads from shared memory, softmax over rows, probabilities as an operand.
//
// Lane legend as in ptx.h: g = lane / 4 is a row, p = lane % 4 a pair of columns. A tile of scores or results is
// 16 rows x 8 columns; a lane holds {row g: columns 2p, 2p+1; row g + 8: the same}.
// Rows in shared memory are `stride` 16-bit elements apart, an odd multiple of 8: the eight 16-byte rows that ldmatrix
// takes at once then start in eight different groups of four banks.
#ifndef FASTERVIT_COMMON_FRAGMENTS_H
#define FASTERVIT_COMMON_FRAGMENTS_H

#include "numeric.h"
#include "ptx.h"

namespace fastervit {

constexpr int kLanes = 32;
constexpr float kLog2E = 1.4426950408889634f;

// 16-bit elements between rows of a shared matrix with so many columns, a multiple of 16.
__host__ __device__ constexpr int padded_stride(int columns) { return columns + 8; }

struct Lane {
  int id = static_cast<int>(threadIdx.x) % kLanes;
  int g = id / 4;
  int p = id % 4;
};

// How threads share the pieces of 8 elements that rows consist of: a thread always takes the same piece, of every
// rows_at_once-th row. Division by a run-time number costs as much as twenty other instructions: here it happens once, and
// not in the loops that copy.
struct RowShare {
  int first_row;
  int rows_at_once;
  int column;

  // Threads that are left over get row `none`. There are at least as many threads as pieces.
  __device__ __forceinline__ RowShare(int thread, int threads, int pieces, int none)
      : first_row(thread / pieces), rows_at_once(threads / pieces), column(thread % pieces * 8) {
    if (first_row >= rows_at_once) first_row = none;
  }
};

// Left operand: rows 0..15, columns 0..15 of what `corner` points to.
template <typename T>
__device__ __forceinline__ void load_left(std::uint32_t (&a)[4], const T* corner, int stride, const Lane& lane) {
  load_matrix_x4(a, corner + (lane.id % 16) * stride + (lane.id / 16) * 8);
}

// Right operand of X · Yᵀ for two tiles of 8 columns: rows 0..15 of Y (columns of the result), its columns 0..15.
template <typename T>
__device__ __forceinline__ void load_right_transposed(std::uint32_t (&b)[4], const T* corner, int stride,
                                                      const Lane& lane) {
  load_matrix_x4(b, corner + (lane.id / 16 * 8 + lane.id % 8) * stride + (lane.id / 8 % 2) * 8);
}

// Right operand of X · Y for two tiles of 8 columns: rows 0..15 of Y, its columns 0..15.
template <typename T>
__device__ __forceinline__ void load_right(std::uint32_t (&b)[4], const T* corner, int stride, const Lane& lane) {
  load_matrix_x4_transposed(b, corner + (lane.id % 16) * stride + (lane.id / 16) * 8);
}

// d[0], d[1] += a · (the two tiles that one load_right or load_right_transposed brought)
template <typename T>
__device__ __forceinline__ void mma_pair(float (&d0)[4], float (&d1)[4], const std::uint32_t (&a)[4],
                                         const std::uint32_t (&b)[4]) {
  const std::uint32_t first[2] = {b[0], b[1]};
  const std::uint32_t second[2] = {b[2], b[3]};
  mma_16x8x16<T>(d0, a, first);
  mma_16x8x16<T>(d1, a, second);
}

// Two neighbouring tiles of results as the left operand of the next product.
template <typename T>
__device__ __forceinline__ void as_left(std::uint32_t (&a)[4], const float (&d0)[4], const float (&d1)[4]) {
  a[0] = pack2<T>(d0[0], d0[1]);
  a[1] = pack2<T>(d0[2], d0[3]);
  a[2] = pack2<T>(d1[0], d1[1]);
  a[3] = pack2<T>(d1[2], d1[3]);
}

// Over the four lanes that share a row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// scores = q kᵀ + scores for 16 queries and 16 · KeyTiles keys; q in registers, keys in shared memory.
template <typename T, int HeadTiles, int KeyTiles>
__device__ __forceinline__ void add_scores(float (&scores)[2 * KeyTiles][4], const std::uint32_t (&q)[HeadTiles][4],
                                           const T* keys, int stride, const Lane& lane) {
#pragma unroll
  for (int key = 0; key < KeyTiles; ++key) {
#pragma unroll
    for (int h = 0; h < HeadTiles; ++h) {
      std::uint32_t k[4];
      load_right_transposed(k, keys + key * 16 * stride + h * 16, stride, lane);
      mma_pair<T>(scores[2 * key], scores[2 * key + 1], q[h], k);
    }
  }
}

// context += weights · values for 16 queries and 16 · KeyTiles keys.
template <typename T, int HeadTiles, int KeyTiles>
__device__ __forceinline__ void add_values(float (&context)[2 * HeadTiles][4], const float (&weights)[2 * KeyTiles][4],
                                           const T* values, int stride, const Lane& lane) {
#pragma unroll
  for (int key = 0; key < KeyTiles; ++key) {
    std::uint32_t w[4];
    as_left<T>(w, weights[2 * key], weights[2 * key + 1]);
#pragma unroll
    for (int h = 0; h < HeadTiles; ++h) {
      std::uint32_t v[4];
      load_right(v, values + key * 16 * stride + h * 16, stride, lane);
      mma_pair<T>(context[2 * h], context[2 * h + 1], w, v);
    }
  }
}

// scores -> exp(scores - row maximum), not yet divided by the sums, which come out for rows g and g + 8.
// exp2 of a difference of products: one FFMA and one MUFU per score instead of the multiplications inside expf.
template <int Tiles>
__device__ __forceinline__ void softmax_numerators(float (&scores)[Tiles][4], float (&sums)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = -INFINITY;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    largest = row_max(largest) * kLog2E;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[n][i] = exp2_approximate(fmaf(scores[n][i], kLog2E, -largest));
        sum += scores[n][i];
      }
    }
    sums[half] = row_sum(sum);
  }
}

// A row of at most 16 · KeyTiles bias values of one head, row by row in global memory, packed for the lane that will add
// them: [tile][row g, row g + 8]. Columns from `tokens` on get -inf: their keys are padding.
template <typename T, int KeyTiles>
__device__ __forceinline__ void load_bias(std::uint32_t (&packed)[2 * KeyTiles][2], const T* __restrict__ bias_NN,
                                          int first_row, int first_column, int tokens, const Lane& lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + lane.g + 8 * half;
    const T* values = bias_NN + static_cast<std::int64_t>(row) * tokens;
#pragma unroll
    for (int n = 0; n < 2 * KeyTiles; ++n) {
      const int column = first_column + n * 8 + 2 * lane.p;
      float pair[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool inside = column + i < tokens;
        pair[i] = inside ? (row < tokens ? to_float(values[column + i]) : 0.0f) : -INFINITY;
      }
      packed[n][half] = pack2<T>(pair[0], pair[1]);
    }
  }
}

// scores = bias: the product is then added to it by the tensor cores, at no cost.
template <typename T, int Tiles>
__device__ __forceinline__ void start_from_bias(float (&scores)[Tiles][4], const std::uint32_t (&bias)[Tiles][2]) {
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 pair = unpack2<T>(bias[n][half]);
      scores[n][2 * half] = pair.x;
      scores[n][2 * half + 1] = pair.y;
    }
  }
}

// scores = scores · scale + bias: for products of integers.
template <typename T, int Tiles>
__device__ __forceinline__ void scale_and_add_bias(float (&scores)[Tiles][4], const std::uint32_t (&bias)[Tiles][2],
                                                   float scale) {
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 pair = unpack2<T>(bias[n][half]);
      scores[n][2 * half] = fmaf(scores[n][2 * half], scale, pair.x);
      scores[n][2 * half + 1] = fmaf(scores[n][2 * half + 1], scale, pair.y);
    }
  }
}

template <int Tiles>
__device__ __forceinline__ void clear(float (&tiles)[Tiles][4]) {
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) tiles[n][i] = 0.0f;
  }
}

}  // namespace fastervit

#endif  // FASTERVIT_COMMON_FRAGMENTS_H
