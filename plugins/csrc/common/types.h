/* What launchers and their callers (TensorRT plugins, PyTorch through ctypes, C) agree on. Plain C.
 *
 * A function NAME_unsupported answers NULL where NAME serves a case, and else one line that names the operator, what was
 * asked and what it serves; the text is the calling thread's until its next such call. A launcher returns 0 or a
 * cudaError_t; cases that are not served give cudaErrorInvalidValue (1) without a launch. All tensors are contiguous in
 * the order of axes given and lie on one device, at addresses that are multiples of 16. `stream` is a cudaStream_t.
 */
#ifndef FASTERVIT_COMMON_TYPES_H
#define FASTERVIT_COMMON_TYPES_H

#if defined(__GNUC__)
#define FASTERVIT_API __attribute__((visibility("default")))
#else
#define FASTERVIT_API __declspec(dllexport)
#endif

/* `dtype` of every launcher. */
enum FastervitDataType { FASTERVIT_FLOAT32 = 0, FASTERVIT_FLOAT16 = 1, FASTERVIT_BFLOAT16 = 2, FASTERVIT_INT8 = 3 };

/* `tactic` of an operator that has several kernels; the operator's header says which it has. */
enum FastervitTactic {
  FASTERVIT_AUTOMATIC = 0, /* what its tile_config.h expects to be fastest */
  FASTERVIT_PLAIN = 1,     /* one thread per result, fp32 arithmetic: the oracle of the others */
  FASTERVIT_RESIDENT = 2,  /* whole windows in registers and shared memory */
  FASTERVIT_STREAMED = 3,  /* windows of any size, tile by tile */
  FASTERVIT_STAGED = 4,    /* several kernels, intermediates in the workspace */
  FASTERVIT_FUSED = 5      /* one kernel */
};

#ifdef __cplusplus
extern "C" {
#endif

/* Version of the operators' contract and of these signatures: a caller loads no library that answers another number. */
FASTERVIT_API int fastervit_interface(void);
/* Version of the project that the library was built from. */
FASTERVIT_API const char* fastervit_version(void);

#ifdef __cplusplus
}
#endif

#endif /* FASTERVIT_COMMON_TYPES_H */
