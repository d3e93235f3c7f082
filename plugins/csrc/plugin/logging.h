// One-line messages: to TensorRT's logger where there is one, else to stderr.
#ifndef FASTERVIT_PLUGIN_LOGGING_H
#define FASTERVIT_PLUGIN_LOGGING_H

#include <NvInferRuntime.h>

namespace fastervit::plugin {

void set_logger_finder(nvinfer1::ILoggerFinder* finder);

void log_error(const char* message);

// TensorRT asks for formats again and again; an answer is said once in the life of the process.
void warn_once(const char* message);

}  // namespace fastervit::plugin

#endif  // FASTERVIT_PLUGIN_LOGGING_H
