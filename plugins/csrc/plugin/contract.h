// What an operator takes, as data: names for messages, and what every plugin checks in the same way.
#ifndef FASTERVIT_PLUGIN_CONTRACT_H
#define FASTERVIT_PLUGIN_CONTRACT_H

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace fastervit::plugin {

constexpr const char* kNamespace = "fastervit";
constexpr const char* kVersion = "1";

class Plugin;
class Attributes;

struct Input {
  const char* name;
  int rank;
  bool is_map = false;  // (B, C, H, W), which convolutions may also hand over channels last
};

// A number. Left out where it is optional, it is 0.
struct Attribute {
  enum Kind { kInteger, kReal };
  const char* name;
  Kind kind;
  double minimum;
  double maximum;  // inclusive, as minimum is
  bool optional = false;
};

struct Contract {
  const char* name;
  std::vector<Input> inputs;
  bool output_is_map;
  std::vector<Attribute> attributes;
  Plugin* (*make)(const Contract&, const Attributes&);
};

// What ranges mean in every operator: wide enough for any image, and products of two stay below 2³¹.
inline Attribute window_attribute() { return {"window", Attribute::kInteger, 1, 256}; }
inline Attribute carriers_attribute() { return {"carriers", Attribute::kInteger, 1, 256}; }
inline Attribute height_attribute() { return {"height", Attribute::kInteger, 1, 32768}; }
inline Attribute width_attribute() { return {"width", Attribute::kInteger, 1, 32768}; }
inline Attribute epsilon_attribute() { return {"eps", Attribute::kReal, 0, 1}; }
inline Attribute scale_attribute(const char* name) { return {name, Attribute::kReal, 0, 1e6, true}; }

// Values of a contract's attributes.
class Attributes {
 public:
  // Takes the contract's fields from those that TensorRT gives and leaves others alone: a node of ONNX also carries
  // constants of its function body. Returns what is wrong, or null.
  const char* read(const Contract& contract, const nvinfer1::PluginFieldCollection* fields);

  // Of an attribute that the contract does not have: 0.
  int integer(const char* name) const { return static_cast<int>(value(name)); }
  float real(const char* name) const { return static_cast<float>(value(name)); }

  // `window=7 height=14`, for timing caches and inspectors.
  std::string text() const;

  // The same as fields, for plans. Valid as long as this is, until the next call.
  const nvinfer1::PluginFieldCollection* fields();

 private:
  struct Value {
    const Attribute* attribute;  // of the contract, which lives as long as the library
    double number;
  };
  double value(const char* name) const;

  std::vector<Value> values_;
  std::vector<std::int32_t> integers_;
  std::vector<float> reals_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace fastervit::plugin

#endif  // FASTERVIT_PLUGIN_CONTRACT_H
