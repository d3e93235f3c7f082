// What an engine is for, by its outputs: their names and shapes are those of fastervit-export.
#ifndef FASTERVIT_RUNNER_TASK_H
#define FASTERVIT_RUNNER_TASK_H

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "errors.h"
#include "shape.h"

namespace fastervit::runner {

enum class Task { kClassification, kSegmentation, kDetection };

struct Output {
  std::string name;
  Shape shape;  // of one image

  std::int64_t size() const {
    std::int64_t count = 1;
    for (const std::int64_t side : shape) count *= side;
    return count;
  }
};

// What an engine yields for one image, in the order of its outputs.
using Rows = std::vector<const float*>;

// The task, and the outputs in its order. Any single vector is taken for logits, whatever its name.
inline Task task_of(std::vector<Output>& outputs, const std::string& engine) {
  const auto place = [](const Output& output) {
    return output.name == "boxes" ? 0 : output.name == "scores" ? 1 : output.name == "labels" ? 2 : 3;
  };
  std::stable_sort(outputs.begin(), outputs.end(),
                   [&](const Output& a, const Output& b) { return place(a) < place(b); });
  if (outputs.size() == 1) {
    if (outputs[0].shape.size() == 1) return Task::kClassification;
    if (outputs[0].shape.size() == 2 && outputs[0].name == "masks") return Task::kSegmentation;
  }
  if (outputs.size() == 3 && place(outputs[0]) == 0 && place(outputs[1]) == 1 && place(outputs[2]) == 2) {
    const Shape& scores = outputs[1].shape;
    if (scores.size() == 1 && outputs[2].shape == scores && outputs[0].shape == Shape{scores[0], 4}) {
      return Task::kDetection;
    }
  }
  std::string found;
  for (const Output& output : outputs) found += (found.empty() ? "" : ", ") + output.name + " " + text_of(output.shape);
  fail(engine, " yields ", found, " for an image; this runs engines that yield logits, masks H x W, or boxes Q x 4 ",
       "with scores and labels, Q of each");
}

}  // namespace fastervit::runner

#endif  // FASTERVIT_RUNNER_TASK_H
