// What the command line says.
#ifndef FASTERVIT_RUNNER_OPTIONS_H
#define FASTERVIT_RUNNER_OPTIONS_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "errors.h"
#include "shape.h"

namespace fastervit::runner {

struct Options {
  std::string engine, images, plugins, labels, library, sha256, output, golden;
  Shape shape;
  double tolerance = -1;  // none
  std::int64_t top = 5, profile = 0, repeat = 0;
  bool host_code = false, verbose = false, help = false;
};

inline std::int64_t integer(const std::string& option, const std::string& text, std::int64_t least) {
  constexpr std::size_t kDigits = 18;  // fit into 64 bits
  const bool digits = !text.empty() && text.size() <= kDigits && text.find_first_not_of("0123456789") == text.npos;
  const std::int64_t value = digits ? std::stoll(text) : -1;
  if (value < least) fail(option, " ", text, ": must be a whole number from ", least, " on");
  return value;
}

inline double tolerance_of(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(value) || value < 0) {
    fail("--tolerance ", text, ": must be a number, 0 or more");
  }
  return value;
}

inline Shape shape_of(const std::string& text) {
  Shape shape;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    shape.push_back(integer("--shape", text.substr(begin, end - begin), 1));
    begin = end + 1;
  }
  if (shape.size() != 4) fail("--shape ", text, ": must be N,C,H,W, as in 8,3,224,224");
  return shape;
}

inline std::string digest_of(std::string text) {
  for (char& letter : text) {
    if (letter >= 'A' && letter <= 'F') letter = static_cast<char>(letter - 'A' + 'a');
  }
  if (text.size() != 64 || text.find_first_not_of("0123456789abcdef") != text.npos) {
    fail("--sha256 ", text, ": must be 64 hexadecimal digits, as sha256sum prints them");
  }
  return text;
}

inline void set_option(Options& options, const std::string& name, const std::string& value) {
  if (value.empty()) fail(name, " needs a value");
  if (name == "--plugins") {
    options.plugins = value;
  } else if (name == "--labels") {
    options.labels = value;
  } else if (name == "--library") {
    options.library = value;
  } else if (name == "--output") {
    options.output = value;
  } else if (name == "--golden") {
    options.golden = value;
  } else if (name == "--sha256") {
    options.sha256 = digest_of(value);
  } else if (name == "--shape") {
    options.shape = shape_of(value);
  } else if (name == "--tolerance") {
    options.tolerance = tolerance_of(value);
  } else if (name == "--top") {
    options.top = integer(name, value, 1);
  } else if (name == "--profile") {
    options.profile = integer(name, value, 0);
  } else if (name == "--repeat") {
    options.repeat = integer(name, value, 1);
  } else {
    fail("unknown option ", name, "; --help lists them");
  }
}

inline Options options_of(const std::vector<std::string>& arguments) {
  Options options;
  for (const std::string& argument : arguments) options.help |= argument == "--help" || argument == "-h";
  if (options.help) return options;
  std::vector<std::string> files;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--host-code") {
      options.host_code = true;
    } else if (argument == "--verbose") {
      options.verbose = true;
    } else if (argument.rfind("--", 0) == 0) {
      const std::size_t equals = argument.find('=');
      if (equals != argument.npos) {
        set_option(options, argument.substr(0, equals), argument.substr(equals + 1));
      } else {
        const bool followed = i + 1 < arguments.size() && arguments[i + 1].rfind("--", 0) != 0;
        set_option(options, argument, followed ? arguments[++i] : "");
      }
    } else {
      files.push_back(argument);
    }
  }
  if (files.size() != 2) fail("which engine, and which images? fastervit-runner ENGINE IMAGES [...]; --help says more");
  options.engine = files[0];
  options.images = files[1];
  if (options.golden.empty() != (options.tolerance < 0)) fail("--golden and --tolerance go together");
  return options;
}

}  // namespace fastervit::runner

#endif  // FASTERVIT_RUNNER_OPTIONS_H
