#include "plugin.h"

#include "../plugin/plugin.h"
#include "kernel.h"

namespace fastervit::plugin {
namespace {

constexpr int kQkv = 0;   // (Wn · N, 3 · D)
constexpr int kBias = 1;  // (1, h, N, N)

class WindowAttention final : public PluginOf<WindowAttention> {
 public:
  WindowAttention(const Contract& contract, const Attributes& attributes)
      : PluginOf(contract, attributes),
        qkv_scale_(attributes.real("qkv_scale")),
        context_scale_(attributes.real("context_scale")) {}

  const char* inconsistent() const override {
    if ((qkv_scale_ > 0) == (context_scale_ > 0)) return nullptr;
    return refusal("%s: attributes qkv_scale %g and context_scale %g, both must be above 0 (int8) or left out", name(),
                   static_cast<double>(qkv_scale_), static_cast<double>(context_scale_));
  }

  std::vector<Extent> output(const Extents& in) const override { return {in.size(kQkv, 0), in.size(kQkv, 1) / 3}; }

  bool takes(nvinfer1::DataType type) const override {
    return type == nvinfer1::DataType::kINT8 ? qkv_scale_ > 0 : PluginOf::takes(type);
  }

  nvinfer1::DataType type_of(int position, nvinfer1::DataType first) const override {
    return position == kBias && first == nvinfer1::DataType::kINT8 ? nvinfer1::DataType::kHALF : first;
  }

  const char* mismatch(const Tensors& in) const override {
    const int heads = in.size(kBias, 1), tokens = in.size(kBias, 2);
    if (in.size(kBias, 0) != 1 || in.size(kBias, 3) != tokens) {
      return refusal("%s: bias of %d x %d x %d x %d, must be 1 x heads x tokens x tokens", name(), in.size(kBias, 0),
                     heads, tokens, in.size(kBias, 3));
    }
    if (in.size(kQkv, 0) % tokens == 0 && in.size(kQkv, 1) % (3 * heads) == 0) return nullptr;
    return refusal("%s: qkv of %d x %d, must be multiples of %d tokens and of 3 x %d heads, as bias has", name(),
                   in.size(kQkv, 0), in.size(kQkv, 1), tokens, heads);
  }

  const char* unsupported(const Tensors& in, int tactic) const override {
    const Sizes s = sizes(in);
    return fastervit_window_attention_unsupported(tactic, in.dtype(), s.tokens, s.heads, s.head_dim);
  }

  std::vector<int> competing() const override { return {FASTERVIT_RESIDENT, FASTERVIT_STREAMED}; }

  int launch(const Tensors& in, const void* const* inputs, void* context, void* /*workspace*/, int tactic,
             void* stream) const override {
    const Sizes s = sizes(in);
    return fastervit_window_attention(context, inputs[kQkv], inputs[kBias], in.dtype(), s.windows, s.tokens, s.heads,
                                      s.head_dim, qkv_scale_, context_scale_, tactic, stream);
  }

 private:
  struct Sizes {
    int windows, tokens, heads, head_dim;
  };

  static Sizes sizes(const Tensors& in) {
    const int heads = in.size(kBias, 1), tokens = in.size(kBias, 2);
    return {in.size(kQkv, 0) / tokens, tokens, heads, in.size(kQkv, 1) / (3 * heads)};
  }

  float qkv_scale_, context_scale_;
};

}  // namespace

const Contract& window_attention() {
  static const Contract contract{"WindowAttention",
                                 {{"qkv", 2}, {"bias", 4}},
                                 false,
                                 {scale_attribute("qkv_scale"), scale_attribute("context_scale")},
                                 make<WindowAttention>};
  return contract;
}

}  // namespace fastervit::plugin
