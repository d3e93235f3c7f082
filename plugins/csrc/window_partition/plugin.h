// WindowPartition as TensorRT plugins: an operator with carriers and one without.
#ifndef FASTERVIT_WINDOW_PARTITION_PLUGIN_H
#define FASTERVIT_WINDOW_PARTITION_PLUGIN_H

#include "../plugin/contract.h"

namespace fastervit::plugin {

const Contract& window_partition();
const Contract& window_partition_with_carriers();

}  // namespace fastervit::plugin

#endif  // FASTERVIT_WINDOW_PARTITION_PLUGIN_H
