#include "plugin.h"

#include "../plugin/plugin.h"
#include "kernel.h"

namespace fastervit::plugin {
namespace {

constexpr int kMap = 0;       // (B, C, H, W)
constexpr int kCarriers = 1;  // (B, C, H/w · side, W/w · side), a side x side patch per window

class WindowPartition final : public PluginOf<WindowPartition> {
 public:
  WindowPartition(const Contract& contract, const Attributes& attributes)
      : PluginOf(contract, attributes),
        window_(attributes.integer("window")),
        table_(static_cast<int>(contract.inputs.size()) - 1) {}

  std::vector<Extent> output(const Extents& in) const override {
    const Extent windows = in.size(kMap, 0) * (in.size(kMap, 2) / window_) * (in.size(kMap, 3) / window_);
    return {windows, in.size(table_, 1), in.size(table_, 2)};
  }

  const char* mismatch(const Tensors& in) const override {
    const Sizes s = sizes(in);
    if (s.height % window_ != 0 || s.width % window_ != 0) {
      return refusal("%s: a map of %d x %d does not divide into windows of %d x %d", name(), s.height, s.width, window_,
                     window_);
    }
    const int rows = s.height / window_, columns = s.width / window_;
    if (has_carriers()) {
      const int side = in.size(kCarriers, 2) / rows;
      const bool fits = in.size(kCarriers, 0) == s.batch && in.size(kCarriers, 1) == s.channels &&
                        in.size(kCarriers, 2) == rows * side && in.size(kCarriers, 3) == columns * side;
      if (!fits || side < 1) {
        return refusal(
            "%s: carriers of %d x %d x %d x %d, must have the map's batch of %d and %d channels, and a square "
            "patch for each of %d x %d windows",
            name(), in.size(kCarriers, 0), in.size(kCarriers, 1), in.size(kCarriers, 2), in.size(kCarriers, 3), s.batch,
            s.channels, rows, columns);
      }
    }
    const int tokens = s.carriers + window_ * window_;
    if (in.size(table_, 0) == 1 && in.size(table_, 1) == tokens && in.size(table_, 2) == s.channels) return nullptr;
    return refusal("%s: table of %d x %d x %d, must be 1 x %d x %d", name(), in.size(table_, 0), in.size(table_, 1),
                   in.size(table_, 2), tokens, s.channels);
  }

  const char* unsupported(const Tensors& in, int /*tactic*/) const override {
    const Sizes s = sizes(in);
    return fastervit_window_partition_unsupported(in.dtype(), s.channels, s.height, s.width, window_, s.carriers,
                                                  is_channels_last(in));
  }

  int launch(const Tensors& in, const void* const* inputs, void* tokens, void* /*workspace*/, int /*tactic*/,
             void* stream) const override {
    const Sizes s = sizes(in);
    return fastervit_window_partition(tokens, inputs[kMap], has_carriers() ? inputs[kCarriers] : nullptr,
                                      inputs[table_], in.dtype(), s.batch, s.channels, s.height, s.width, window_,
                                      s.carriers, is_channels_last(in), stream);
  }

 private:
  struct Sizes {
    int batch, channels, height, width, carriers;
  };

  bool has_carriers() const { return table_ > kCarriers; }

  Sizes sizes(const Tensors& in) const {
    const int side = has_carriers() ? in.size(kCarriers, 2) * window_ / in.size(kMap, 2) : 0;
    return {in.size(kMap, 0), in.size(kMap, 1), in.size(kMap, 2), in.size(kMap, 3), side * side};
  }

  int window_;
  int table_;  // which input it is
};

}  // namespace

const Contract& window_partition() {
  static const Contract contract{
      "WindowPartition", {{"map", 4, true}, {"table", 3}}, false, {window_attribute()}, make<WindowPartition>};
  return contract;
}

const Contract& window_partition_with_carriers() {
  static const Contract contract{"WindowPartitionWithCarriers",
                                 {{"map", 4, true}, {"carriers", 4, true}, {"table", 3}},
                                 false,
                                 {window_attribute()},
                                 make<WindowPartition>};
  return contract;
}

}  // namespace fastervit::plugin
