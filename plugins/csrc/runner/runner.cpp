// Runs a model's TensorRT engine on images from a file, without Python: plugin library, engine, images, what it finds.
//
// Nothing is printed before all of it is known; an error is one line, and exit code 2.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <exception>
#include <filesystem>
#include <fstream>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "errors.h"
#include "golden.h"
#include "network.h"
#include "options.h"
#include "results.h"
#include "sha256.h"
#include "tensor_file.h"

namespace fastervit::runner {
namespace {

constexpr char kUsage[] =
    R"(fastervit-runner ENGINE IMAGES [options]: what a TensorRT engine finds in images

  ENGINE            an engine for this GPU and this TensorRT. It is executable code: give --sha256
  IMAGES            float32 (N, C, H, W), preprocessed: .npy as numpy.save writes it, or raw with --shape

  --plugins FILE    libfastervit_plugins.so, where the engine was built with it
  --sha256 HEX      refuse any other engine, before TensorRT sees it
  --labels FILE     one class name a line
  --top K           classes, or detections, per image (5)
  --shape N,C,H,W   of raw images
  --profile K       optimisation profile, which says the batch sizes (0)
  --output FILE     write what it yields as .npy; of several outputs NAME.npy each, into this folder
  --golden PATH     compare with outputs in a .npy file, or in golden-NAME.npy of this folder; exit code 1 where they
                    differ by more than
  --tolerance X     this: of logits the largest difference, of masks the share of pixels with another class, of
                    detections how far the worst is from its best counterpart, times its score
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

void check_labels(const Network& network, const std::vector<std::string>& labels, const Options& options) {
  if (labels.empty() || network.task() != Task::kClassification) return;  // others do not say how many there are
  const std::int64_t classes = network.outputs()[0].size();
  if (labels.size() != static_cast<std::size_t>(classes)) {
    fail(options.labels, " has ", labels.size(), " labels, ", options.engine, " has ", classes, " classes");
  }
}

// A file for each output.
std::deque<NpyWriter> writers_of(const Options& options, const std::vector<Output>& outputs, std::int64_t images) {
  std::deque<NpyWriter> writers;
  if (options.output.empty()) return writers;
  if (outputs.size() > 1 && !std::filesystem::is_directory(options.output)) {
    fail("--output ", options.output, " is no folder, and there are ", outputs.size(), " outputs; name one for ",
         outputs[0].name, ".npy and the others");
  }
  for (const Output& output : outputs) {
    Shape shape = output.shape;
    shape.insert(shape.begin(), images);
    writers.emplace_back(outputs.size() > 1 ? options.output + "/" + output.name + ".npy" : options.output, shape);
  }
  return writers;
}

std::string run(const Options& options) {
  TensorFile images(options.images, options.shape);
  if (images.shape().size() != 4) fail(options.images, " is ", text_of(images.shape()), ", not N x C x H x W");
  const std::vector<std::string> labels = read_labels(options.labels);
  if (!options.golden.empty() && !std::filesystem::is_directory(options.golden)) file_bytes(options.golden);
  std::vector<unsigned char> engine = read_engine(options);

  require_gpu();
  Network network(options, std::move(engine), images.shape());
  check_labels(network, labels, options);
  const std::vector<Output>& outputs = network.outputs();
  std::optional<Golden> golden;
  if (!options.golden.empty()) golden.emplace(options.golden, network.task(), outputs, images.rows());
  std::deque<NpyWriter> writers = writers_of(options, outputs, images.rows());

  Results results(network.task(), outputs, options.top, labels);
  std::string timing;
  for (std::int64_t first = 0; first < images.rows(); first += network.most()) {
    const std::int64_t count = std::min(network.most(), images.rows() - first);
    images.read(first, count, network.images());
    network.run(count);
    for (std::int64_t i = 0; i < count; ++i) {
      const Rows rows = network.rows(i);
      for (std::size_t k = 0; k < writers.size(); ++k) {
        writers[k].write(rows[k], float_bytes(outputs[k].shape, options.output));
      }
      if (golden) golden->add(first + i, rows);
      if (golden && !golden->within(options.tolerance)) continue;  // nothing but the verdict will be printed
      results.add(first + i, rows);
    }
    if (first == 0 && options.repeat > 0) timing = latency(network.latencies(options.repeat), count);
  }
  for (NpyWriter& writer : writers) writer.finish();
  return results.text() + (golden ? golden->verdict(options.tolerance) : "") + timing;
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
