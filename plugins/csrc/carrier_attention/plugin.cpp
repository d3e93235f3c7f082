#include "plugin.h"

#include "../plugin/plugin.h"
#include "kernel.h"

namespace fastervit::plugin {
namespace {

constexpr int kTokens = 0;  // of CarrierAttention (Wn, N, C), of FusedWindowAttention (Wn · N, C)
constexpr int kTable = 1;   // (1, G, C), of CarrierAttention

// The inputs behind these.
enum Weight { kNormWeight, kNormBias, kQkvWeight, kQkvBias, kBias, kProjWeight, kProjBias, kWeights };

class CarrierAttention final : public PluginOf<CarrierAttention> {
 public:
  CarrierAttention(const Contract& contract, const Attributes& attributes)
      : PluginOf(contract, attributes),
        first_weight_(static_cast<int>(contract.inputs.size()) - kWeights),
        carriers_(attributes.integer("carriers")),
        epsilon_(attributes.real("eps")) {}

  std::vector<Extent> output(const Extents& in) const override {
    if (!has_table()) return {in.size(kTokens, 0), in.size(kTokens, 1)};
    return {in.size(kTokens, 0) * carriers_, in.size(kTokens, 2)};
  }

  const char* mismatch(const Tensors& in) const override {
    const char* reason = has_table() ? mismatch_of_carriers(in) : mismatch_of_windows(in);
    return reason != nullptr ? reason : mismatch_of_weights(in);
  }

  const char* unsupported(const Tensors& in, int tactic) const override {
    const Sizes s = sizes(in);
    return fastervit_carrier_attention_unsupported(tactic, in.dtype(), s.channels, s.heads, s.head_dim, s.of_image,
                                                   s.per_window, /*shared_memory, of the current GPU=*/0);
  }

  std::vector<int> competing() const override { return {FASTERVIT_STAGED, FASTERVIT_FUSED}; }

  std::size_t workspace(const Tensors& in, int tactic) const override {
    const Sizes s = sizes(in);
    return static_cast<std::size_t>(
        fastervit_carrier_attention_workspace(tactic, in.dtype(), s.images, s.of_image, s.heads, s.head_dim));
  }

  int launch(const Tensors& in, const void* const* inputs, void* out, void* workspace, int tactic,
             void* stream) const override {
    const Sizes s = sizes(in);
    const void* const* weights = inputs + first_weight_;
    return fastervit_carrier_attention(out, inputs[kTokens], has_table() ? inputs[kTable] : nullptr,
                                       weights[kNormWeight], weights[kNormBias], weights[kQkvWeight], weights[kQkvBias],
                                       weights[kBias], weights[kProjWeight], weights[kProjBias], workspace, in.dtype(),
                                       s.images, s.of_image, s.per_window, s.tokens, s.channels, s.heads, s.head_dim,
                                       epsilon_, tactic, stream);
  }

 private:
  // G = of_image rows attend to each other; R = per_window of them are the first of each window of N = tokens rows.
  struct Sizes {
    int images, of_image, per_window, tokens, channels, heads, head_dim;
  };

  bool has_table() const { return first_weight_ > kTable; }
  int weight(const Tensors& in, Weight which, int axis) const { return in.size(first_weight_ + which, axis); }

  Sizes sizes(const Tensors& in) const {
    const int heads = weight(in, kBias, 1), of_image = weight(in, kBias, 2);
    const int head_dim = weight(in, kProjWeight, 1) / heads;
    if (has_table()) {
      const int images = in.size(kTokens, 0) / (of_image / carriers_);
      return {images, of_image, carriers_, in.size(kTokens, 1), in.size(kTokens, 2), heads, head_dim};
    }
    // A window is an image of which every row is a carrier.
    return {in.size(kTokens, 0) / of_image, of_image, of_image, of_image, in.size(kTokens, 1), heads, head_dim};
  }

  const char* mismatch_of_carriers(const Tensors& in) const {
    const int of_image = weight(in, kBias, 2), channels = in.size(kTokens, 2);
    if (of_image % carriers_ != 0) {
      return refusal("%s: bias of %d carriers, must be a multiple of attribute carriers, %d", name(), of_image,
                     carriers_);
    }
    if (in.size(kTable, 0) != 1 || in.size(kTable, 1) != of_image || in.size(kTable, 2) != channels) {
      return refusal("%s: table of %d x %d x %d, must be 1 x %d x %d", name(), in.size(kTable, 0), in.size(kTable, 1),
                     in.size(kTable, 2), of_image, channels);
    }
    const int windows = of_image / carriers_;
    if (in.size(kTokens, 0) % windows == 0 && in.size(kTokens, 1) >= carriers_) return nullptr;
    return refusal("%s: tokens of %d windows of %d rows, must be a multiple of %d windows of at least %d rows", name(),
                   in.size(kTokens, 0), in.size(kTokens, 1), windows, carriers_);
  }

  const char* mismatch_of_windows(const Tensors& in) const {
    const int tokens = weight(in, kBias, 2);
    if (in.size(kTokens, 0) % tokens == 0) return nullptr;
    return refusal("%s: %d rows, must be a multiple of the %d of bias", name(), in.size(kTokens, 0), tokens);
  }

  const char* mismatch_of_weights(const Tensors& in) const {
    const int channels = in.size(kTokens, has_table() ? 2 : 1), dim = weight(in, kProjWeight, 1);
    const int heads = weight(in, kBias, 1), rows = weight(in, kBias, 2);
    if (weight(in, kBias, 0) != 1 || weight(in, kBias, 3) != rows || dim % heads != 0) {
      return refusal("%s: bias of %d x %d x %d x %d, must be 1 x a divisor of the %d columns of proj_weight x %d x %d",
                     name(), weight(in, kBias, 0), heads, rows, weight(in, kBias, 3), dim, rows, rows);
    }
    const struct {
      Weight which;
      int rows, columns;
    } expected[] = {{kNormWeight, channels, 1}, {kNormBias, channels, 1},     {kQkvWeight, 3 * dim, channels},
                    {kQkvBias, 3 * dim, 1},     {kProjWeight, channels, dim}, {kProjBias, channels, 1}};
    for (const auto& e : expected) {
      const Input& expected_input = input(first_weight_ + e.which);
      const int found_rows = weight(in, e.which, 0);
      const int found_columns = expected_input.rank == 1 ? 1 : weight(in, e.which, 1);
      if (found_rows == e.rows && found_columns == e.columns) continue;
      return refusal("%s: %s of %d x %d, must be %d x %d", name(), expected_input.name, found_rows, found_columns,
                     e.rows, e.columns);
    }
    return nullptr;
  }

  int first_weight_;  // which input it is
  int carriers_;
  float epsilon_;
};

std::vector<Input> with_weights(std::vector<Input> inputs) {
  const Input weights[] = {{"norm_weight", 1}, {"norm_bias", 1},   {"qkv_weight", 2}, {"qkv_bias", 1},
                           {"bias", 4},        {"proj_weight", 2}, {"proj_bias", 1}};
  inputs.insert(inputs.end(), std::begin(weights), std::end(weights));
  return inputs;
}

}  // namespace

const Contract& carrier_attention() {
  static const Contract contract{"CarrierAttention",
                                 with_weights({{"tokens", 3}, {"table", 3}}),
                                 false,
                                 {carriers_attribute(), epsilon_attribute()},
                                 make<CarrierAttention>};
  return contract;
}

const Contract& fused_window_attention() {
  static const Contract contract{
      "FusedWindowAttention", with_weights({{"rows", 2}}), false, {epsilon_attribute()}, make<CarrierAttention>};
  return contract;
}

}  // namespace fastervit::plugin
