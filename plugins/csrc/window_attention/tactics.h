// The three kernels of WindowAttention, for its launcher. All return a cudaError_t.
#ifndef FASTERVIT_WINDOW_ATTENTION_TACTICS_H
#define FASTERVIT_WINDOW_ATTENTION_TACTICS_H

namespace fastervit::window_attention {

struct Call {
  void* context;
  const void* qkv;
  const void* bias;
  int windows;
  int tokens;
  int heads;
  int head_dim;
  int dim;              // of all heads
  float score_scale;    // of integer products: qkv_scale²; else 1
  float context_scale;  // integer context of an integer average: qkv_scale / context_scale; else 1
};

int plain(const Call& call, int dtype, void* stream);
int resident(const Call& call, int dtype, void* stream);
int streamed(const Call& call, int dtype, void* stream);

}  // namespace fastervit::window_attention

#endif  // FASTERVIT_WINDOW_ATTENTION_TACTICS_H
