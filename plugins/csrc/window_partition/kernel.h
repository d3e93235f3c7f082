/* WindowPartition: map (B, C, H, W) -> tokens (B · H/w · W/w, R + w², C), position table added. Plain C.
 *
 *   tokens[window, R + t] = map[pixel t of window] + table[R + t]        t row-major within row-major windows
 *   tokens[window, r]     = carriers[pixel r of window] + table[r]       R = side², a side x side patch per window
 */
#ifndef FASTERVIT_WINDOW_PARTITION_KERNEL_H
#define FASTERVIT_WINDOW_PARTITION_KERNEL_H

#include "../common/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* fp32, fp16 or bf16. `carriers_per_window` 0: no carriers. `channels_last`: map and carriers are (B, H, W, C). */
FASTERVIT_API const char* fastervit_window_partition_unsupported(int dtype, int channels, int height, int width,
                                                                 int window, int carriers_per_window,
                                                                 int channels_last);
FASTERVIT_API int fastervit_window_partition(void* tokens, const void* map, const void* carriers, const void* table,
                                             int dtype, int batch, int channels, int height, int width, int window,
                                             int carriers_per_window, int channels_last, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* FASTERVIT_WINDOW_PARTITION_KERNEL_H */
