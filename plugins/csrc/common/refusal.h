// One-line reasons why a case is not served.
#ifndef FASTERVIT_COMMON_REFUSAL_H
#define FASTERVIT_COMMON_REFUSAL_H

#include <cstdio>

namespace fastervit {

// printf into memory of the calling thread, valid until its next refusal.
template <typename... Values>
const char* refusal(const char* format, Values... values) {
  static thread_local char text[256];
  if constexpr (sizeof...(values) == 0) {
    std::snprintf(text, sizeof text, "%s", format);
  } else {
    std::snprintf(text, sizeof text, format, values...);
  }
  return text;
}

// Names as messages spell them.
inline const char* dtype_name(int dtype) {
  constexpr const char* names[] = {"fp32", "fp16", "bf16", "int8"};
  return dtype >= 0 && dtype < 4 ? names[dtype] : "an unknown dtype";
}

inline const char* tactic_name(int tactic) {
  constexpr const char* names[] = {"automatic", "plain", "resident", "streamed", "staged", "fused"};
  return tactic >= 0 && tactic < 6 ? names[tactic] : "unknown";
}

}  // namespace fastervit

#endif  // FASTERVIT_COMMON_REFUSAL_H
