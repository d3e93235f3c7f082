// Runs a classifier's TensorRT engine on images from a file, without Python: plugin library, engine, images, top-5.
//
// Nothing is printed before all of it is known; an error is one line, and exit code 2.
#include <cstdio>
#include <exception>
#include <fstream>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "classifier.h"
#include "device.h"
#include "errors.h"
#include "options.h"
#include "results.h"
#include "sha256.h"
#include "tensor_file.h"

namespace fastervit::runner {
namespace {

constexpr char kUsage[] =
    R"(fastervit-runner ENGINE IMAGES [options]: classify images with a TensorRT engine

  ENGINE            an engine for this GPU and this TensorRT. It is executable code: give --sha256
  IMAGES            float32 (N, C, H, W), preprocessed: .npy as numpy.save writes it, or raw with --shape

  --plugins FILE    libfastervit_plugins.so, where the engine was built with it
  --sha256 HEX      refuse any other engine, before TensorRT sees it
  --labels FILE     one class name a line
  --top K           classes per image (5)
  --shape N,C,H,W   of raw images
  --profile K       optimisation profile, which says the batch sizes (0)
  --output FILE     write the logits as .npy, (N, classes)
  --golden FILE     compare with these logits, a .npy file; exit code 1 where they differ by more than
  --tolerance X     this, absolute
  --repeat N        time the first batch N times on the GPU
  --library FILE    libnvinfer.so, or libnvinfer_lean.so for version-compatible engines
  --host-code       allow the engine to bring host code, as version-compatible ones do
  --verbose         show what TensorRT says
)";

std::vector<unsigned char> read_engine(const Options& options) {
  std::vector<unsigned char> bytes(file_bytes(options.engine));
  std::ifstream stream(options.engine, std::ios::binary);
  stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!stream || bytes.empty()) fail("cannot read ", options.engine, bytes.empty() ? ": it is empty" : "");
  if (!options.sha256.empty()) {
    const std::string digest = sha256(bytes);
    if (digest != options.sha256) {
      fail(options.engine, " is not the engine that --sha256 names, but ", digest, "; none of it was loaded");
    }
  }
  return bytes;
}

std::vector<std::string> read_labels(const std::string& path) {
  std::vector<std::string> labels;
  if (path.empty()) return labels;
  file_bytes(path);  // a folder opens, too
  std::ifstream stream(path);
  for (std::string line; std::getline(stream, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    labels.push_back(line);
  }
  if (!stream.eof() || labels.empty()) fail("cannot read labels from ", path);
  return labels;
}

void check_classes(const Classifier& classifier, const std::vector<std::string>& labels, const Options& options,
                   const std::optional<TensorFile>& golden, std::int64_t images) {
  const std::int64_t classes = classifier.classes();
  if (!labels.empty() && labels.size() != static_cast<std::size_t>(classes)) {
    fail(options.labels, " has ", labels.size(), " labels, ", options.engine, " has ", classes, " classes");
  }
  if (golden && golden->shape() != Shape{images, classes}) {
    fail(options.golden, " is ", text_of(golden->shape()), ", the logits are ", text_of({images, classes}));
  }
}

std::string run(const Options& options) {
  TensorFile images(options.images, options.shape);
  if (images.shape().size() != 4) fail(options.images, " is ", text_of(images.shape()), ", not N x C x H x W");
  const std::vector<std::string> labels = read_labels(options.labels);
  std::optional<TensorFile> golden;
  if (!options.golden.empty()) golden.emplace(options.golden, Shape{});
  std::vector<unsigned char> engine = read_engine(options);

  require_gpu();
  Classifier classifier(options, std::move(engine), images.shape());
  check_classes(classifier, labels, options, golden, images.rows());
  const std::int64_t classes = classifier.classes();
  std::optional<NpyWriter> output;
  if (!options.output.empty()) output.emplace(options.output, Shape{images.rows(), classes});

  std::string report, timing;
  Comparison comparison;
  for (std::int64_t first = 0; first < images.rows(); first += classifier.most()) {
    const std::int64_t count = std::min(classifier.most(), images.rows() - first);
    images.read(first, count, classifier.images());
    const float* const logits = classifier.run(count);
    if (output) output->write(logits, float_bytes({count, classes}, options.output));
    if (golden) {
      std::vector<float> expected(static_cast<std::size_t>(count * classes));
      golden->read(first, count, expected.data());
      comparison.add(logits, expected.data(), first, count, classes);
    }
    if (golden && !comparison.within(options.tolerance)) continue;  // nothing but the verdict will be printed
    for (std::int64_t i = 0; i < count; ++i)
      report += ranking(logits + i * classes, classes, options.top, first + i, labels);
    if (first == 0 && options.repeat > 0) timing = latency(classifier.latencies(options.repeat), count);
  }
  if (output) output->finish();
  if (golden) report += comparison.verdict(options.tolerance);
  return report + timing;
}

int run_command(const std::vector<std::string>& arguments) {
  const Options options = options_of(arguments);
  const std::string report = options.help ? kUsage : run(options);
  if (std::fwrite(report.data(), 1, report.size(), stdout) != report.size() || std::fflush(stdout) != 0) {
    fail("cannot write to the standard output");
  }
  return 0;
}

}  // namespace
}  // namespace fastervit::runner

int main(int count, char** arguments) {
  try {
    return fastervit::runner::run_command(std::vector<std::string>(arguments + 1, arguments + count));
  } catch (const fastervit::runner::Mismatch& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "error: out of memory\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
  }
  return 2;
}
