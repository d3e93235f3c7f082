// WindowReverse as TensorRT plugins: without carriers, dropping them, propagating them.
#ifndef FASTERVIT_WINDOW_REVERSE_PLUGIN_H
#define FASTERVIT_WINDOW_REVERSE_PLUGIN_H

#include "../plugin/contract.h"

namespace fastervit::plugin {

const Contract& window_reverse();
const Contract& window_reverse_with_carriers();
const Contract& window_reverse_with_propagation();

}  // namespace fastervit::plugin

#endif  // FASTERVIT_WINDOW_REVERSE_PLUGIN_H
