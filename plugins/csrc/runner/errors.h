// How the runner fails: one line, and an exit code.
#ifndef FASTERVIT_RUNNER_ERRORS_H
#define FASTERVIT_RUNNER_ERRORS_H

#include <sstream>
#include <stdexcept>
#include <string>

namespace fastervit::runner {

// Something the user can act on: exit code 2.
class Failure : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The engine ran, and its outputs are not those expected: exit code 1.
class Mismatch : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename Error = Failure, typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  text.precision(9);  // tells any two floats apart
  (text << ... << parts);
  throw Error(text.str());
}

}  // namespace fastervit::runner

#endif  // FASTERVIT_RUNNER_ERRORS_H
