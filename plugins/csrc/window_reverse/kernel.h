/* WindowReverse: tokens (B · H/w · W/w, R + w², C) -> map (B, C, H, W), carriers dropped or propagated. Plain C.
 *
 *   map[pixel t of window] = tokens[window, R + t] (+ gamma · tokens[window, nearest carrier of t])
 */
#ifndef FASTERVIT_WINDOW_REVERSE_KERNEL_H
#define FASTERVIT_WINDOW_REVERSE_KERNEL_H

#include "../common/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* fp32, fp16 or bf16. `gamma` (C) may be NULL: nothing is propagated. `channels_last`: the map is (B, H, W, C).
 * `propagates`: gamma is given; R must then be a square number. */
FASTERVIT_API const char* fastervit_window_reverse_unsupported(int dtype, int channels, int height, int width,
                                                               int window, int carriers_per_window, int propagates,
                                                               int channels_last);
FASTERVIT_API int fastervit_window_reverse(void* map, const void* tokens, const void* gamma, int dtype, int batch,
                                           int channels, int height, int width, int window, int carriers_per_window,
                                           int channels_last, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* FASTERVIT_WINDOW_REVERSE_KERNEL_H */
