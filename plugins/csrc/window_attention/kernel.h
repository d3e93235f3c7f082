/* WindowAttention: qkv (Wn, N, 3, h, d), bias (h, N, N) -> context (Wn, N, h, d). Plain C.
 *
 *   context = softmax(q kᵀ + bias) v in every window and head; q is scaled already (FasterViT, arXiv 2306.06189, §3)
 *
 * int8: qkv and context are int8, real value = scale · integer; bias is fp16. Elsewhere bias has the dtype of qkv and the
 * scales are ignored.
 */
#ifndef FASTERVIT_WINDOW_ATTENTION_KERNEL_H
#define FASTERVIT_WINDOW_ATTENTION_KERNEL_H

#include "../common/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tactics: plain, resident, streamed. */
FASTERVIT_API const char* fastervit_window_attention_unsupported(int tactic, int dtype, int tokens, int heads,
                                                                 int head_dim);
FASTERVIT_API int fastervit_window_attention(void* context, const void* qkv, const void* bias, int dtype, int windows,
                                             int tokens, int heads, int head_dim, float qkv_scale, float context_scale,
                                             int tactic, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* FASTERVIT_WINDOW_ATTENTION_KERNEL_H */
