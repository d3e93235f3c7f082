#include "contract.h"

#include <cstring>

#include "../common/refusal.h"

namespace fastervit::plugin {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

const PluginField* find(const nvinfer1::PluginFieldCollection* fields, const char* name) {
  for (int i = 0; fields != nullptr && i < fields->nbFields; ++i) {
    if (fields->fields[i].name != nullptr && std::strcmp(fields->fields[i].name, name) == 0) return &fields->fields[i];
  }
  return nullptr;
}

template <typename T>
double number_at(const void* data) {
  T value;
  std::memcpy(&value, data, sizeof value);  // fields promise no alignment
  return static_cast<double>(value);
}

// False where the field is not one number of that kind.
bool number_of(const PluginField& field, Attribute::Kind kind, double& number) {
  if (field.data == nullptr || field.length != 1) return false;
  const bool integer = kind == Attribute::kInteger;
  switch (field.type) {
    case PluginFieldType::kINT32: number = number_at<std::int32_t>(field.data); return integer;
    case PluginFieldType::kINT64: number = number_at<std::int64_t>(field.data); return integer;
    case PluginFieldType::kFLOAT32: number = number_at<float>(field.data); return !integer;
    case PluginFieldType::kFLOAT64: number = number_at<double>(field.data); return !integer;
    default: return false;
  }
}

const char* kind_name(Attribute::Kind kind) { return kind == Attribute::kInteger ? "an integer" : "a float"; }

}  // namespace

const char* Attributes::read(const Contract& contract, const nvinfer1::PluginFieldCollection* fields) {
  values_.clear();
  for (const Attribute& attribute : contract.attributes) {
    const char* kind = kind_name(attribute.kind);
    const double least = attribute.minimum, most = attribute.maximum;
    double number = 0;
    if (const PluginField* field = find(fields, attribute.name)) {
      if (!number_of(*field, attribute.kind, number)) {
        return refusal("%s: attribute %s must be %s from %g to %g", contract.name, attribute.name, kind, least, most);
      }
      if (!(number >= least && number <= most)) {  // this way round refuses NaN
        return refusal("%s: attribute %s is %g, must be %s from %g to %g", contract.name, attribute.name, number, kind,
                       least, most);
      }
    } else if (!attribute.optional) {
      return refusal("%s: attribute %s is missing, must be %s from %g to %g", contract.name, attribute.name, kind,
                     least, most);
    }
    values_.push_back({&attribute, number});
  }
  return nullptr;
}

double Attributes::value(const char* name) const {
  for (const Value& value : values_) {
    if (std::strcmp(value.attribute->name, name) == 0) return value.number;
  }
  return 0;
}

std::string Attributes::text() const {
  std::string text;
  for (const Value& value : values_) {
    char number[32];
    std::snprintf(number, sizeof number, "%.9g", value.number);
    text += (text.empty() ? "" : " ") + std::string(value.attribute->name) + "=" + number;
  }
  return text;
}

const nvinfer1::PluginFieldCollection* Attributes::fields() {
  integers_.assign(values_.size(), 0);
  reals_.assign(values_.size(), 0);
  fields_.clear();
  for (std::size_t i = 0; i < values_.size(); ++i) {
    const Attribute& attribute = *values_[i].attribute;
    integers_[i] = static_cast<std::int32_t>(values_[i].number);
    reals_[i] = static_cast<float>(values_[i].number);
    if (attribute.kind == Attribute::kInteger) {
      fields_.emplace_back(attribute.name, &integers_[i], PluginFieldType::kINT32, 1);
    } else {
      fields_.emplace_back(attribute.name, &reals_[i], PluginFieldType::kFLOAT32, 1);
    }
  }
  collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
  return &collection_;
}

}  // namespace fastervit::plugin
