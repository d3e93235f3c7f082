// CarrierAttention as TensorRT plugins: on the carriers of an image, and as FusedWindowAttention on whole windows.
#ifndef FASTERVIT_CARRIER_ATTENTION_PLUGIN_H
#define FASTERVIT_CARRIER_ATTENTION_PLUGIN_H

#include "../plugin/contract.h"

namespace fastervit::plugin {

const Contract& carrier_attention();
const Contract& fused_window_attention();

}  // namespace fastervit::plugin

#endif  // FASTERVIT_CARRIER_ATTENTION_PLUGIN_H
