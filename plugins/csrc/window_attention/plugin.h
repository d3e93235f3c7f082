// WindowAttention as a TensorRT plugin.
#ifndef FASTERVIT_WINDOW_ATTENTION_PLUGIN_H
#define FASTERVIT_WINDOW_ATTENTION_PLUGIN_H

#include "../plugin/contract.h"

namespace fastervit::plugin {

const Contract& window_attention();

}  // namespace fastervit::plugin

#endif  // FASTERVIT_WINDOW_ATTENTION_PLUGIN_H
