#include "plugin.h"

#include <cmath>

#include "../plugin/plugin.h"
#include "kernel.h"

namespace fastervit::plugin {
namespace {

constexpr int kTokens = 0;  // (B · H/w · W/w, R + w², C)
constexpr int kGamma = 1;   // (C)

class WindowReverse final : public PluginOf<WindowReverse> {
 public:
  WindowReverse(const Contract& contract, const Attributes& attributes)
      : PluginOf(contract, attributes),
        window_(attributes.integer("window")),
        carriers_(attributes.integer("carriers")),
        height_(attributes.integer("height")),
        width_(attributes.integer("width")),
        propagates_(contract.inputs.size() > kGamma) {}

  const char* inconsistent() const override {
    if (height_ % window_ != 0 || width_ % window_ != 0) {
      return refusal("%s: attributes height %d and width %d must be multiples of window %d", name(), height_, width_,
                     window_);
    }
    const int side = static_cast<int>(std::lround(std::sqrt(carriers_)));
    if (propagates_ && side * side != carriers_) {
      return refusal("%s: attribute carriers is %d, must be a square number", name(), carriers_);
    }
    return nullptr;
  }

  std::vector<Extent> output(const Extents& in) const override {
    return {in.size(kTokens, 0) / windows(), in.size(kTokens, 2), in.constant(height_), in.constant(width_)};
  }

  const char* mismatch(const Tensors& in) const override {
    const int rows = carriers_ + window_ * window_;
    if (in.size(kTokens, 0) % windows() != 0 || in.size(kTokens, 1) != rows) {
      return refusal("%s: tokens of %d windows of %d rows, must be a multiple of %d windows of %d rows", name(),
                     in.size(kTokens, 0), in.size(kTokens, 1), windows(), rows);
    }
    if (propagates_ && in.size(kGamma, 0) != in.size(kTokens, 2)) {
      return refusal("%s: gamma of %d channels, must have the %d of tokens", name(), in.size(kGamma, 0),
                     in.size(kTokens, 2));
    }
    return nullptr;
  }

  const char* unsupported(const Tensors& in, int /*tactic*/) const override {
    return fastervit_window_reverse_unsupported(in.dtype(), in.size(kTokens, 2), height_, width_, window_, carriers_,
                                                propagates_, is_channels_last(in));
  }

  int launch(const Tensors& in, const void* const* inputs, void* map, void* /*workspace*/, int /*tactic*/,
             void* stream) const override {
    return fastervit_window_reverse(map, inputs[kTokens], propagates_ ? inputs[kGamma] : nullptr, in.dtype(),
                                    in.size(kTokens, 0) / windows(), in.size(kTokens, 2), height_, width_, window_,
                                    carriers_, is_channels_last(in), stream);
  }

 private:
  int windows() const { return (height_ / window_) * (width_ / window_); }  // of an image

  int window_, carriers_, height_, width_;
  bool propagates_;
};

}  // namespace

const Contract& window_reverse() {
  static const Contract contract{"WindowReverse",
                                 {{"tokens", 3}},
                                 true,
                                 {window_attribute(), height_attribute(), width_attribute()},
                                 make<WindowReverse>};
  return contract;
}

const Contract& window_reverse_with_carriers() {
  static const Contract contract{"WindowReverseWithCarriers",
                                 {{"tokens", 3}},
                                 true,
                                 {carriers_attribute(), window_attribute(), height_attribute(), width_attribute()},
                                 make<WindowReverse>};
  return contract;
}

const Contract& window_reverse_with_propagation() {
  static const Contract contract{"WindowReverseWithPropagation",
                                 {{"tokens", 3}, {"gamma", 1}},
                                 true,
                                 {carriers_attribute(), window_attribute(), height_attribute(), width_attribute()},
                                 make<WindowReverse>};
  return contract;
}

}  // namespace fastervit::plugin
