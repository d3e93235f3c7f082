// What is printed of an image: the likeliest classes, the surest detections, the classes of most pixels; and latencies.
#ifndef FASTERVIT_RUNNER_RESULTS_H
#define FASTERVIT_RUNNER_RESULTS_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "errors.h"
#include "task.h"

namespace fastervit::runner {

// Lines about one image after another.
class Results {
 public:
  // `top`: lines per image; `labels`: names of classes, or none.
  Results(Task task, std::vector<Output> outputs, std::int64_t top, std::vector<std::string> labels)
      : task_(task), outputs_(std::move(outputs)), top_(top), labels_(std::move(labels)) {}

  void add(std::int64_t image, const Rows& rows) {
    text_ += "image " + std::to_string(image) + "\n";
    switch (task_) {
      case Task::kClassification: return ranking(image, rows[0]);
      case Task::kSegmentation: return pixels(image, rows[0]);
      case Task::kDetection: return detections(image, rows[0], rows[1], rows[2]);
    }
  }

  const std::string& text() const { return text_; }

 private:
  // "rank  probability  class  label"; softmax in double, ties by class.
  void ranking(std::int64_t image, const float* logits) {
    const std::int64_t classes = outputs_[0].size();
    for (std::int64_t i = 0; i < classes; ++i) {
      if (!std::isfinite(logits[i])) {
        fail("image ", image, " has the logit ", logits[i], " for class ", i,
             ": the engine overflows, or the image does");
      }
    }
    std::vector<std::int64_t> order(static_cast<std::size_t>(classes));
    std::iota(order.begin(), order.end(), 0);
    const auto count = std::min(top_, classes);
    std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](std::int64_t a, std::int64_t b) {
      return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
    });
    const double largest = logits[order[0]];
    double sum = 0;
    for (std::int64_t i = 0; i < classes; ++i) sum += std::exp(logits[i] - largest);
    for (std::int64_t rank = 0; rank < count; ++rank) {
      const std::int64_t index = order[static_cast<std::size_t>(rank)];
      line(rank, std::exp(logits[index] - largest) / sum, index, "");
    }
  }

  // "rank  share of the pixels  class  label", ties by class.
  void pixels(std::int64_t image, const float* mask) {
    const std::int64_t all = outputs_[0].size();
    std::map<std::int64_t, std::int64_t> counts;
    for (std::int64_t i = 0; i < all; ++i) ++counts[class_of(image, mask[i])];
    std::vector<std::pair<std::int64_t, std::int64_t>> order(counts.begin(), counts.end());
    std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    const auto count = std::min(top_, static_cast<std::int64_t>(order.size()));
    for (std::int64_t rank = 0; rank < count; ++rank) {
      const auto& [index, found] = order[static_cast<std::size_t>(rank)];
      line(rank, static_cast<double>(found) / static_cast<double>(all), index, "");
    }
  }

  // "rank  score  class  left top right bottom  label", as the engine sorts them: from the surest on.
  void detections(std::int64_t image, const float* boxes, const float* scores, const float* labels) {
    const std::int64_t queries = outputs_[1].size();
    for (std::int64_t i = 0; i < queries; ++i) {
      if (!std::all_of(boxes + 4 * i, boxes + 4 * i + 4, [](float side) { return std::isfinite(side); }) ||
          !std::isfinite(scores[i])) {
        fail("image ", image, " has a detection, ", i, ", that is not finite: the engine overflows, or the image does");
      }
    }
    for (std::int64_t i = 0; i < std::min(top_, queries); ++i) {
      char corners[96];
      std::snprintf(corners, sizeof corners, "  %.4f %.4f %.4f %.4f", double{boxes[4 * i]}, double{boxes[4 * i + 1]},
                    double{boxes[4 * i + 2]}, double{boxes[4 * i + 3]});
      line(i, scores[i], class_of(image, labels[i]), corners);
    }
  }

  // The class that a float stands for.
  std::int64_t class_of(std::int64_t image, float value) const {
    constexpr float kMost = 1 << 24;  // beyond it float32 skips numbers
    if (!(value >= 0 && value <= kMost) || value != std::floor(value)) {
      fail("image ", image, " has the class ", value, ", which is none: the engine overflows, or the image does");
    }
    const auto index = static_cast<std::int64_t>(value);
    if (!labels_.empty() && index >= static_cast<std::int64_t>(labels_.size())) {
      fail("image ", image, " has the class ", index, ", and there are ", labels_.size(), " labels");
    }
    return index;
  }

  void line(std::int64_t rank, double value, std::int64_t index, const std::string& more) {
    char start[96];
    std::snprintf(start, sizeof start, "%4lld  %.6f  %lld", static_cast<long long>(rank + 1), value,
                  static_cast<long long>(index));
    text_ += start + more;
    if (!labels_.empty()) text_ += "  " + labels_[static_cast<std::size_t>(index)];
    text_ += "\n";
  }

  const Task task_;
  const std::vector<Output> outputs_;
  const std::int64_t top_;
  const std::vector<std::string> labels_;
  std::string text_;
};

// By nearest rank: a value that was measured.
inline double percentile(std::vector<float> values, double percent) {
  std::sort(values.begin(), values.end());
  const double rank = std::ceil(percent / 100 * static_cast<double>(values.size()));
  return values[static_cast<std::size_t>(std::max(rank, 1.0)) - 1];
}

inline std::string latency(const std::vector<float>& milliseconds, std::int64_t images) {
  char line[160];
  std::snprintf(
      line, sizeof line, "latency: p50 %.4f ms, p90 %.4f ms of %zu runs, %lld images each, on the GPU without copies\n",
      percentile(milliseconds, 50), percentile(milliseconds, 90), milliseconds.size(), static_cast<long long>(images));
  return line;
}

}  // namespace fastervit::runner

#endif  // FASTERVIT_RUNNER_RESULTS_H
