// Outputs held to those expected, by the definition of export/golden.py: logits value by value, masks by their pixels,
// detections by the worst that counts.
#ifndef FASTERVIT_RUNNER_GOLDEN_H
#define FASTERVIT_RUNNER_GOLDEN_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "errors.h"
#include "task.h"
#include "tensor_file.h"

namespace fastervit::runner {

constexpr double kLeastSure = 1e-6;  // a largest score below this is none

// How far what was found of an image is from what was expected, and by what.
struct Difference {
  double apart;
  std::string reason;
};

// The largest difference of two values; what is not finite is as wrong as can be.
inline Difference logits_apart(const float* found, const float* expected, std::int64_t classes) {
  double worst = -1;
  std::int64_t at = 0;
  for (std::int64_t i = 0; i < classes; ++i) {
    const double difference = std::isfinite(found[i]) ? std::abs(double{found[i]} - double{expected[i]})
                                                      : std::numeric_limits<double>::infinity();
    if (difference > worst) worst = difference, at = i;
  }
  std::ostringstream reason;
  reason.precision(9);
  reason << "class " << at << ": " << found[at] << " instead of " << expected[at];
  return {worst, reason.str()};
}

// The share of pixels with another class.
inline Difference masks_apart(const float* found, const float* expected, std::int64_t pixels) {
  std::int64_t differ = 0;
  for (std::int64_t i = 0; i < pixels; ++i) differ += found[i] != expected[i];
  return {static_cast<double>(differ) / static_cast<double>(pixels),
          std::to_string(differ) + " of " + std::to_string(pixels) + " pixels have another class"};
}

// Boxes (Q, 4), scores and labels (Q) of one image.
struct Detections {
  Detections(const Rows& rows, std::int64_t queries)
      : boxes(rows[0]), scores(rows[1]), labels(rows[2]), count(queries) {}

  bool finite() const {
    const auto all = [](const float* from, std::int64_t size) {
      return std::all_of(from, from + size, [](float value) { return std::isfinite(value); });
    };
    return all(boxes, 4 * count) && all(scores, count) && all(labels, count);
  }

  std::string described(std::int64_t i) const {
    std::ostringstream text;
    text.precision(4);
    text << "label " << labels[i] << ", score " << scores[i] << ", box";
    for (int side = 0; side < 4; ++side) text << " " << boxes[4 * i + side];
    return text.str();
  }

  const float *boxes, *scores, *labels;
  const std::int64_t count;
};

// A score relative to the largest that is expected of the image, which no score is above.
inline double relative(float score, double surest) { return std::min(double{score} / surest, 1.0); }

// How unlike two detections are: 1 with another label, else the larger of the differences of scores and of sides.
inline double unlike(const Detections& one, std::int64_t i, const Detections& other, std::int64_t k, double surest) {
  if (one.labels[i] != other.labels[k]) return 1;
  double apart = std::abs(relative(one.scores[i], surest) - relative(other.scores[k], surest));
  for (int side = 0; side < 4; ++side) {
    apart = std::max(apart, std::abs(double{one.boxes[4 * i + side]} - double{other.boxes[4 * k + side]}));
  }
  return std::min(apart, 1.0);
}

// The detection of `one` whose best counterpart in `other` is worst, each weighed by the fourth power of its score.
inline Difference worst_of(const Detections& one, const Detections& other, double surest, const char* verb) {
  double worst = -1;
  std::string reason;
  for (std::int64_t i = 0; i < one.count; ++i) {
    double least = 2;
    std::int64_t best = 0;
    for (std::int64_t k = 0; k < other.count; ++k) {
      const double apart = unlike(one, i, other, k, surest);
      if (apart < least) least = apart, best = k;
    }
    const double matters = std::pow(relative(one.scores[i], surest), 4) * least;
    if (matters <= worst) continue;
    worst = matters;
    reason = "most by " + one.described(i) +
             (least < 1 ? std::string(", ") + verb + " as " + other.described(best)
                        : std::string(", which was not ") + verb + " at all");
  }
  return {worst, reason};
}

inline Difference detections_apart(const Detections& found, const Detections& expected) {
  if (!found.finite()) return {1, "some of it is not finite"};
  const float largest = *std::max_element(expected.scores, expected.scores + expected.count);
  const double surest = std::max(double{largest}, kLeastSure);
  const Difference missed = worst_of(expected, found, surest, "found");
  const Difference added = worst_of(found, expected, surest, "expected");
  return added.apart > missed.apart ? added : missed;
}

// The golden outputs of a network, and the largest difference from them so far.
class Golden {
 public:
  // `path`: the file of the only output, or the folder with golden-NAME.npy of each.
  Golden(const std::string& path, Task task, std::vector<Output> outputs, std::int64_t images)
      : path_(path), task_(task), outputs_(std::move(outputs)) {
    const bool folder = std::filesystem::is_directory(path);
    if (!folder && outputs_.size() > 1) {
      fail(path, " is one file, and there are ", outputs_.size(), " outputs; name the folder with golden-",
           outputs_[0].name, ".npy and the others");
    }
    for (const Output& output : outputs_) {
      const std::string file = folder ? path + "/golden-" + output.name + ".npy" : path;
      const TensorFile& golden = files_.emplace_back(file, Shape{});
      Shape shape = output.shape;
      shape.insert(shape.begin(), images);
      if (golden.shape() != shape) {
        fail(file, " is ", text_of(golden.shape()), ", the ", output.name, " are ", text_of(shape));
      }
      expected_.emplace_back(static_cast<std::size_t>(output.size()));
    }
  }

  void add(std::int64_t image, const Rows& found) {
    Rows expected;
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      std::vector<float>& values = expected_[i];
      files_[i].read(image, 1, values.data());
      if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
        fail("the golden ", outputs_[i].name, " of image ", image, " are not finite: they can judge nothing");
      }
      expected.push_back(values.data());
    }
    const Difference difference = apart(found, expected);
    if (difference.apart <= worst_.apart) return;
    worst_ = difference;
    image_ = image;
  }

  bool within(double tolerance) const { return worst_.apart <= tolerance; }

  // One line, which says that all is well.
  std::string verdict(double tolerance) const {
    std::ostringstream text;
    text.precision(9);
    text << "golden: the worst difference is " << std::max(worst_.apart, 0.0) << " of " << tolerance
         << " allowed, image " << image_ << ", " << worst_.reason;
    if (!within(tolerance)) throw Mismatch(text.str());
    return text.str() + "\n";
  }

 private:
  Difference apart(const Rows& found, const Rows& expected) const {
    const std::int64_t size = outputs_[0].size();
    if (task_ == Task::kClassification) return logits_apart(found[0], expected[0], size);
    if (task_ == Task::kSegmentation) return masks_apart(found[0], expected[0], size);
    const std::int64_t queries = outputs_[1].size();
    return detections_apart({found, queries}, {expected, queries});
  }

  const std::string path_;
  const Task task_;
  const std::vector<Output> outputs_;
  std::vector<TensorFile> files_;
  std::vector<std::vector<float>> expected_;  // of one image
  Difference worst_{-1, ""};
  std::int64_t image_ = 0;
};

}  // namespace fastervit::runner

#endif  // FASTERVIT_RUNNER_GOLDEN_H
