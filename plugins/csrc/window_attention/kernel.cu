// Launcher of WindowAttention: which kernel serves a case, and the refusal where none does.
#include "../common/refusal.h"
#include "kernel.h"
#include "tactics.h"
#include "tile_config.h"

namespace fastervit::window_attention {
namespace {

// A kernel that serves dtype and sizes, if there is any.
int resolved(int tactic, int dtype, int tokens) {
  if (tactic != FASTERVIT_AUTOMATIC) return tactic;
  if (dtype == FASTERVIT_FLOAT32) return FASTERVIT_PLAIN;
  return tokens <= kMaxResident || dtype == FASTERVIT_INT8 ? FASTERVIT_RESIDENT : FASTERVIT_STREAMED;
}

const char* unsupported(int tactic, int dtype, int tokens, int heads, int head_dim) {
  if (dtype < FASTERVIT_FLOAT32 || dtype > FASTERVIT_INT8)
    return refusal("WindowAttention: dtype %d is unknown", dtype);
  if (tokens < 1 || heads < 1 || head_dim < 1) {
    return refusal("WindowAttention: %d tokens, %d heads of %d channels; all must be at least 1", tokens, heads,
                   head_dim);
  }
  switch (resolved(tactic, dtype, tokens)) {
    case FASTERVIT_PLAIN:
      if (tokens <= kPlainMaxTokens) return nullptr;
      return refusal("WindowAttention: windows of %d tokens; the plain kernel serves up to %d", tokens,
                     kPlainMaxTokens);
    case FASTERVIT_RESIDENT:
    case FASTERVIT_STREAMED: break;
    default: return refusal("WindowAttention has no %s kernel; plain, resident and streamed", tactic_name(tactic));
  }
  if (dtype == FASTERVIT_FLOAT32) {
    return refusal("WindowAttention: the %s kernel serves fp16, bf16 and int8, not fp32", tactic_name(tactic));
  }
  if (head_dim % kMultiple != 0 || head_dim > kMaxHeadDim) {
    return refusal("WindowAttention: head dim %d in %s; served are multiples of %d up to %d", head_dim,
                   dtype_name(dtype), kMultiple, kMaxHeadDim);
  }
  if (resolved(tactic, dtype, tokens) == FASTERVIT_RESIDENT) {
    if (tokens <= kMaxResident) return nullptr;
    return refusal("WindowAttention: windows of %d tokens in %s; the resident kernel serves up to %d", tokens,
                   dtype_name(dtype), kMaxResident);
  }
  return dtype == FASTERVIT_INT8 ? refusal("WindowAttention: the streamed kernel serves fp16 and bf16, not int8")
                                 : nullptr;
}

}  // namespace
}  // namespace fastervit::window_attention

const char* fastervit_window_attention_unsupported(int tactic, int dtype, int tokens, int heads, int head_dim) {
  return fastervit::window_attention::unsupported(tactic, dtype, tokens, heads, head_dim);
}

int fastervit_window_attention(void* context, const void* qkv, const void* bias, int dtype, int windows, int tokens,
                               int heads, int head_dim, float qkv_scale, float context_scale, int tactic,
                               void* stream) {
  namespace operator_ = fastervit::window_attention;
  if (operator_::unsupported(tactic, dtype, tokens, heads, head_dim) != nullptr || windows < 0) {
    return static_cast<int>(cudaErrorInvalidValue);
  }
  if (windows == 0) return static_cast<int>(cudaSuccess);
  operator_::Call call{context, qkv, bias, windows, tokens, heads, head_dim, heads * head_dim, 1.0f, 1.0f};
  if (dtype == FASTERVIT_INT8) {
    call.score_scale = qkv_scale * qkv_scale;
    call.context_scale = qkv_scale / context_scale;
  }
  switch (operator_::resolved(tactic, dtype, tokens)) {
    case FASTERVIT_PLAIN: return operator_::plain(call, dtype, stream);
    case FASTERVIT_RESIDENT: return operator_::resident(call, dtype, stream);
    default: return operator_::streamed(call, dtype, stream);
  }
}
