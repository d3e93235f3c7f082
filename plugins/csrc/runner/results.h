// What is made of logits: a ranking with probabilities, a comparison with the logits expected.
#ifndef FASTERVIT_RUNNER_RESULTS_H
#define FASTERVIT_RUNNER_RESULTS_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "errors.h"

namespace fastervit::runner {

// Lines "rank  probability  class  label" of one image; softmax in double, ties by class.
inline std::string ranking(const float* logits, std::int64_t classes, std::int64_t top, std::int64_t image,
                           const std::vector<std::string>& labels) {
  for (std::int64_t i = 0; i < classes; ++i) {
    if (!std::isfinite(logits[i])) {
      fail("image ", image, " has the logit ", logits[i], " for class ", i,
           ": the engine overflows, or the image does");
    }
  }
  std::vector<std::int64_t> order(static_cast<std::size_t>(classes));
  std::iota(order.begin(), order.end(), 0);
  const auto count = std::min(top, classes);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](std::int64_t a, std::int64_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });
  const double largest = logits[order[0]];
  double sum = 0;
  for (std::int64_t i = 0; i < classes; ++i) sum += std::exp(logits[i] - largest);

  std::string text = "image " + std::to_string(image) + "\n";
  for (std::int64_t rank = 0; rank < count; ++rank) {
    const std::int64_t index = order[static_cast<std::size_t>(rank)];
    char line[96];
    std::snprintf(line, sizeof line, "%4lld  %.6f  %lld", static_cast<long long>(rank + 1),
                  std::exp(logits[index] - largest) / sum, static_cast<long long>(index));
    text += line;
    if (!labels.empty()) text += "  " + labels[static_cast<std::size_t>(index)];
    text += "\n";
  }
  return text;
}

// The largest difference so far between logits and those expected.
class Comparison {
 public:
  void add(const float* logits, const float* expected, std::int64_t first_image, std::int64_t images,
           std::int64_t classes) {
    for (std::int64_t i = 0; i < images * classes; ++i) {
      if (!std::isfinite(expected[i])) {
        fail("the golden logits of image ", first_image + i / classes, " are not finite: they can judge nothing");
      }
      const double difference = std::isfinite(logits[i]) ? std::abs(double{logits[i]} - double{expected[i]})
                                                         : std::numeric_limits<double>::infinity();
      if (difference <= worst_) continue;
      worst_ = difference;
      image_ = first_image + i / classes, class_ = i % classes;
      logit_ = logits[i], expected_ = expected[i];
    }
  }

  bool within(double tolerance) const { return worst_ <= tolerance; }

  // One line, which says that all is well.
  std::string verdict(double tolerance) const {
    std::ostringstream text;
    text.precision(9);
    text << "golden: the worst difference is " << std::max(worst_, 0.0) << " of " << tolerance << " allowed, image "
         << image_ << ", class " << class_ << ": " << logit_ << " instead of " << expected_;
    if (!within(tolerance)) throw Mismatch(text.str());
    return text.str() + "\n";
  }

 private:
  double worst_ = -1;
  std::int64_t image_ = 0, class_ = 0;
  float logit_ = 0, expected_ = 0;
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
