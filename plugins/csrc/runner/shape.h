// Shapes of tensors, and their sizes without overflow.
#ifndef FASTERVIT_RUNNER_SHAPE_H
#define FASTERVIT_RUNNER_SHAPE_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "errors.h"

namespace fastervit::runner {

using Shape = std::vector<std::int64_t>;

inline std::string text_of(const Shape& shape) {
  std::string text;
  for (const std::int64_t size : shape) text += (text.empty() ? "" : "x") + std::to_string(size);
  return text.empty() ? "no dimensions" : text;
}

// Bytes of float32 elements; `what` is the tensor, for the error.
inline std::size_t float_bytes(const Shape& shape, const std::string& what) {
  std::int64_t bytes = sizeof(float);
  for (const std::int64_t size : shape) {
    if (size < 0) fail(what, " has the shape ", text_of(shape), ", with a negative size");
    if (__builtin_mul_overflow(bytes, size, &bytes)) {
      fail(what, " has the shape ", text_of(shape), ", which is more than any memory");
    }
  }
  return static_cast<std::size_t>(bytes);
}

}  // namespace fastervit::runner

#endif  // FASTERVIT_RUNNER_SHAPE_H
