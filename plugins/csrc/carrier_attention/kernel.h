/* CarrierAttention: the attention half of a block on rows of tokens (Wn, N, C). Plain C.
 *
 *   ct  = tokens[window, r] + table                 r < R, the G = R · (windows of an image) carriers of an image
 *   out = ct + MHSA(LN(ct)) (Wn · R, C)             MHSA(x) = softmax(q kᵀ + bias) v · Wpᵀ + bp, (q, k, v) = x Wqkvᵀ + bqkv
 *
 * With R = G = N and without a table it is FusedWindowAttention: the attention half of every window by itself.
 *
 * Shapes: table (G, C) or NULL; norm_weight, norm_bias, proj_bias (C); qkv_weight (3·D, C), qkv_bias (3·D);
 * bias (h, G, G); proj_weight (C, D); D = h · d. All of one dtype.
 */
#ifndef FASTERVIT_CARRIER_ATTENTION_KERNEL_H
#define FASTERVIT_CARRIER_ATTENTION_KERNEL_H

#include "../common/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tactics: plain, staged, fused. `shared_memory`: bytes that a block can have on the GPU meant (0: ask the current one).
 */
FASTERVIT_API const char* fastervit_carrier_attention_unsupported(int tactic, int dtype, int channels, int heads,
                                                                  int head_dim, int carriers_of_image,
                                                                  int carriers_per_window, int shared_memory);
/* Bytes of workspace that the launcher needs for so many images, whichever tactic it takes. */
FASTERVIT_API long long fastervit_carrier_attention_workspace(int tactic, int dtype, int images, int carriers_of_image,
                                                              int heads, int head_dim);
FASTERVIT_API int fastervit_carrier_attention(void* out, const void* tokens, const void* table, const void* norm_weight,
                                              const void* norm_bias, const void* qkv_weight, const void* qkv_bias,
                                              const void* bias, const void* proj_weight, const void* proj_bias,
                                              void* workspace, int dtype, int images, int carriers_of_image,
                                              int carriers_per_window, int tokens_per_window, int channels, int heads,
                                              int head_dim, float epsilon, int tactic, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* FASTERVIT_CARRIER_ATTENTION_KERNEL_H */
