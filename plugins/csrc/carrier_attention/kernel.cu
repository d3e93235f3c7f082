// Launcher of CarrierAttention: which kernels serve a case, and the refusal where none do.
#include "../common/refusal.h"
#include "../window_attention/kernel.h"
#include "kernel.h"
#include "tactics.h"
#include "tile_config.h"

namespace fastervit::carrier_attention {
namespace {

struct Sizes {
  int dtype;
  int channels;
  int heads;
  int head_dim;
  int carriers_of_image;
  int carriers_per_window;
};

constexpr int kPiece = 8;       // elements of 16 bytes: rows are copied in such pieces
constexpr int kFusedStep = 16;  // channels of one tensor-core step

// Bytes of shared memory that a block can have: as given, or of the current device, or 0 where there is none.
int shared_memory_of(int given) {
  Device device;
  if (given > 0) return given;
  return current_device(device) == 0 ? device.shared_memory_per_block : 0;
}

// 0 where the fused kernel does not serve the case.
int depth_of(const Sizes& sizes, int shared_memory) {
  if (sizes.dtype == FASTERVIT_FLOAT32 || sizes.carriers_of_image > kFusedMaxRows) return 0;
  if (sizes.channels % kFusedStep != 0 || sizes.heads * sizes.head_dim % kFusedStep != 0) return 0;
  return fused_depth(sizes.carriers_of_image, sizes.channels, sizes.heads, sizes.head_dim,
                     shared_memory_of(shared_memory));
}

int resolved(int tactic, const Sizes& sizes, int shared_memory) {
  if (tactic != FASTERVIT_AUTOMATIC) return tactic;
  if (sizes.dtype == FASTERVIT_FLOAT32) return FASTERVIT_PLAIN;
  return depth_of(sizes, shared_memory) > 0 ? FASTERVIT_FUSED : FASTERVIT_STAGED;
}

const char* unsupported(int tactic, const Sizes& sizes, int shared_memory) {
  if (sizes.dtype < FASTERVIT_FLOAT32 || sizes.dtype > FASTERVIT_BFLOAT16) {
    return refusal("CarrierAttention: %s; served are fp32, fp16 and bf16", dtype_name(sizes.dtype));
  }
  if (sizes.channels < 1 || sizes.heads < 1 || sizes.head_dim < 1 || sizes.carriers_per_window < 1 ||
      sizes.carriers_of_image < 1 || sizes.carriers_of_image % sizes.carriers_per_window != 0) {
    return refusal(
        "CarrierAttention: %d channels, %d heads of %d, %d carriers an image, %d a window; all must be at "
        "least 1, and windows have equally many",
        sizes.channels, sizes.heads, sizes.head_dim, sizes.carriers_of_image, sizes.carriers_per_window);
  }
  if (tactic == FASTERVIT_RESIDENT || tactic == FASTERVIT_STREAMED || tactic < 0 || tactic > FASTERVIT_FUSED) {
    return refusal("CarrierAttention has no %s kernel; plain, staged and fused", tactic_name(tactic));
  }
  const int kernel = resolved(tactic, sizes, shared_memory);
  if (kernel == FASTERVIT_PLAIN) {
    return fastervit_window_attention_unsupported(FASTERVIT_PLAIN, sizes.dtype, sizes.carriers_of_image, sizes.heads,
                                                  sizes.head_dim);
  }
  if (sizes.dtype == FASTERVIT_FLOAT32) {
    return refusal("CarrierAttention: the %s kernel serves fp16 and bf16, not fp32", tactic_name(tactic));
  }
  if (sizes.channels % kPiece != 0) {
    return refusal("CarrierAttention: %d channels in %s; served are multiples of %d", sizes.channels,
                   dtype_name(sizes.dtype), kPiece);
  }
  const int tactic_of_core = kernel == FASTERVIT_FUSED ? FASTERVIT_STREAMED : FASTERVIT_AUTOMATIC;
  const char* core = fastervit_window_attention_unsupported(tactic_of_core, sizes.dtype, sizes.carriers_of_image,
                                                            sizes.heads, sizes.head_dim);
  if (core != nullptr) {
    return refusal("CarrierAttention: head dim %d in %s; served are multiples of %d up to %d", sizes.head_dim,
                   dtype_name(sizes.dtype), window_attention::kMultiple, window_attention::kMaxHeadDim);
  }
  if (kernel != FASTERVIT_FUSED || depth_of(sizes, shared_memory) > 0) return nullptr;
  if (sizes.carriers_of_image > kFusedMaxRows) {
    return refusal("CarrierAttention: %d carriers; the fused kernel serves up to %d", sizes.carriers_of_image,
                   kFusedMaxRows);
  }
  if (sizes.channels % kFusedStep != 0 || sizes.heads * sizes.head_dim % kFusedStep != 0) {
    return refusal("CarrierAttention: %d channels, %d in all heads; the fused kernel serves multiples of %d",
                   sizes.channels, sizes.heads * sizes.head_dim, kFusedStep);
  }
  return refusal("CarrierAttention: the fused kernel needs %d bytes of shared memory for these sizes; a block has %d",
                 fused_shared_bytes(sizes.carriers_of_image, sizes.channels, sizes.heads, sizes.head_dim, kFusedStep),
                 shared_memory_of(shared_memory));
}

}  // namespace
}  // namespace fastervit::carrier_attention

const char* fastervit_carrier_attention_unsupported(int tactic, int dtype, int channels, int heads, int head_dim,
                                                    int carriers_of_image, int carriers_per_window, int shared_memory) {
  return fastervit::carrier_attention::unsupported(
      tactic, {dtype, channels, heads, head_dim, carriers_of_image, carriers_per_window}, shared_memory);
}

long long fastervit_carrier_attention_workspace(int tactic, int dtype, int images, int carriers_of_image, int heads,
                                                int head_dim) {
  if (tactic == FASTERVIT_FUSED) return 0;
  const long long element = dtype == FASTERVIT_FLOAT32 ? 4 : 2;
  return 4LL * images * carriers_of_image * heads * head_dim * element;  // qkv and context
}

int fastervit_carrier_attention(void* out, const void* tokens, const void* table, const void* norm_weight,
                                const void* norm_bias, const void* qkv_weight, const void* qkv_bias, const void* bias,
                                const void* proj_weight, const void* proj_bias, void* workspace, int dtype, int images,
                                int carriers_of_image, int carriers_per_window, int tokens_per_window, int channels,
                                int heads, int head_dim, float epsilon, int tactic, void* stream) {
  namespace operator_ = fastervit::carrier_attention;
  const operator_::Sizes sizes{dtype, channels, heads, head_dim, carriers_of_image, carriers_per_window};
  if (operator_::unsupported(tactic, sizes, 0) != nullptr || images < 0 || tokens_per_window < carriers_per_window) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (images == 0) return static_cast<int>(cudaSuccess);
  const operator_::Call call{out,
                             tokens,
                             table,
                             norm_weight,
                             norm_bias,
                             qkv_weight,
                             qkv_bias,
                             bias,
                             proj_weight,
                             proj_bias,
                             workspace,
                             images,
                             carriers_of_image,
                             carriers_per_window,
                             tokens_per_window,
                             channels,
                             heads,
                             head_dim,
                             epsilon,
                             operator_::depth_of(sizes, 0)};
  switch (operator_::resolved(tactic, sizes, 0)) {
    case FASTERVIT_PLAIN: return operator_::plain(call, dtype, stream);
    case FASTERVIT_STAGED: return operator_::staged(call, dtype, stream);
    default: return operator_::fused(call, dtype, stream);
  }
}
