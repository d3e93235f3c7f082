// Tensors in files: float32 in C order, as numpy.save writes them (.npy, versions 1 and 2) or raw.
#ifndef FASTERVIT_RUNNER_TENSOR_FILE_H
#define FASTERVIT_RUNNER_TENSOR_FILE_H

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "errors.h"
#include "shape.h"

namespace fastervit::runner {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "elements are read as they lie in the file");

constexpr char kMagic[] = "\x93NUMPY";
constexpr std::size_t kMagicBytes = sizeof kMagic - 1;

inline std::uintmax_t file_bytes(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) fail("there is no file ", path);
  if (!std::filesystem::is_regular_file(status)) fail(path, " is no file");
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error) fail("cannot read ", path, ": ", error.message());
  return bytes;
}

// The dictionary in the header of a .npy file: {'descr': '<f4', 'fortran_order': False, 'shape': (8, 3, 224, 224), }
class NpyHeader {
 public:
  NpyHeader(const std::string& text, const std::string& path) : text_(text), path_(path) {
    expect('{');
    while (!accept('}')) {
      const std::string key = quoted();
      expect(':');
      if (key == "descr" && type_.empty()) {
        type_ = peek() == '[' ? "a structure" : quoted();
        if (type_ == "a structure") break;  // whatever follows, it is refused
      } else if (key == "fortran_order" && order_.empty()) {
        order_ = word();
      } else if (key == "shape" && !has_shape_) {
        shape_ = tuple();
      } else {
        damaged();
      }
      if (!accept(',') && peek() != '}') damaged();
    }
    if (type_ != "<f4") fail(path, " holds ", type_.empty() ? "nothing" : type_, ", not float32 ('<f4')");
    if (position_ != text_.find_last_not_of(" \n") + 1) damaged();
    if (order_ == "True") fail(path, " is in Fortran order; save numpy.ascontiguousarray of it");
    if (order_ != "False" || !has_shape_) damaged();
  }

  const Shape& shape() const { return shape_; }

 private:
  [[noreturn]] void damaged() const { fail(path_, " is damaged: its header is none that numpy.save writes"); }

  char peek() {
    while (position_ < text_.size() && text_[position_] == ' ') ++position_;
    return position_ < text_.size() ? text_[position_] : '\0';
  }

  bool accept(char expected) {
    const bool found = peek() == expected;
    position_ += found;
    return found;
  }

  void expect(char expected) {
    if (!accept(expected)) damaged();
  }

  std::string quoted() {
    expect('\'');
    const std::size_t end = text_.find('\'', position_);
    if (end == text_.npos) damaged();
    const std::string found = text_.substr(position_, end - position_);
    position_ = end + 1;
    if (found.empty() || !std::all_of(found.begin(), found.end(), [](char c) { return c > ' ' && c < '\x7f'; }))
      damaged();
    return found;
  }

  std::string word() {
    peek();
    const std::size_t end = std::min(text_.find_first_of(" ,}", position_), text_.size());
    const std::string found = text_.substr(position_, end - position_);
    position_ = end;
    return found;
  }

  Shape tuple() {
    has_shape_ = true;
    constexpr std::size_t kDigits = 18;  // fit into 64 bits
    Shape sizes;
    expect('(');
    while (!accept(')')) {
      peek();
      const std::size_t end = std::min(text_.find_first_not_of("0123456789", position_), text_.size());
      if (end == position_ || end - position_ > kDigits) damaged();
      sizes.push_back(std::stoll(text_.substr(position_, end - position_)));
      position_ = end;
      if (!accept(',') && peek() != ')') damaged();
    }
    return sizes;
  }

  const std::string& text_;
  const std::string& path_;
  std::size_t position_ = 0;
  std::string type_, order_;
  bool has_shape_ = false;
  Shape shape_;
};

// A tensor of rows (images, or the logits of one), read some at a time.
class TensorFile {
 public:
  // `given`: the shape of a raw file, or empty. A .npy file has its own.
  TensorFile(const std::string& path, const Shape& given) : path_(path), shape_(given) {
    const std::uintmax_t all = file_bytes(path);
    stream_.open(path, std::ios::binary);
    if (!stream_) fail("cannot read ", path);
    char magic[kMagicBytes] = {};
    stream_.read(magic, kMagicBytes);
    if (stream_ && std::equal(magic, magic + kMagicBytes, kMagic)) {
      read_header(all);
      if (!given.empty() && given != shape_) fail(path, " has the shape ", text_of(shape_), ", not ", text_of(given));
    } else if (given.empty()) {
      fail(path, " is no .npy file; give the shape of raw float32 as --shape N,C,H,W");
    }
    const std::size_t asked = float_bytes(shape_, path);
    if (all - begin_ != asked) {
      fail(path, " has ", all - begin_, " bytes of data, its shape ", text_of(shape_), " asks for ", asked);
    }
    if (shape_.empty() || asked == 0) fail(path, " is empty: its shape is ", text_of(shape_));
    row_bytes_ = asked / static_cast<std::size_t>(shape_[0]);
  }

  const Shape& shape() const { return shape_; }
  std::int64_t rows() const { return shape_[0]; }

  // Rows, which must exist, from `first` on.
  void read(std::int64_t first, std::int64_t count, float* to) {
    const std::size_t bytes = row_bytes_ * static_cast<std::size_t>(count);
    stream_.clear();
    stream_.seekg(static_cast<std::streamoff>(begin_ + row_bytes_ * static_cast<std::size_t>(first)));
    stream_.read(reinterpret_cast<char*>(to), static_cast<std::streamsize>(bytes));
    if (!stream_) fail("cannot read ", path_, ": it changed while it was read, or the disk failed");
  }

 private:
  void read_header(std::uintmax_t all) {
    unsigned char start[6] = {};  // version, and the header's length in 2 or 4 bytes
    stream_.read(reinterpret_cast<char*>(start), 2);
    if (stream_ && ((start[0] != 1 && start[0] != 2) || start[1] != 0)) {
      fail(path_, " is .npy of version ", int{start[0]}, ".", int{start[1]},
           "; this reads 1 and 2, which numpy.save writes");
    }
    const std::size_t digits = start[0] == 1 ? 2 : 4;
    stream_.read(reinterpret_cast<char*>(start + 2), static_cast<std::streamsize>(digits));
    std::size_t length = 0;
    for (std::size_t i = 0; i < digits; ++i) length |= std::size_t{start[2 + i]} << 8 * i;
    begin_ = kMagicBytes + 2 + digits + length;
    constexpr std::size_t kMost = 1 << 16;  // a hundred bytes are usual
    if (!stream_ || length > kMost || begin_ > all) fail(path_, " is damaged: it ends within its header");
    std::string text(length, '\0');
    stream_.read(text.data(), static_cast<std::streamsize>(length));
    if (!stream_) fail("cannot read ", path_);
    shape_ = NpyHeader(text, path_).shape();
  }

  std::string path_;
  std::ifstream stream_;
  Shape shape_;
  std::uintmax_t begin_ = 0;  // of the data
  std::size_t row_bytes_ = 0;
};

// A .npy file that appears whole or not at all.
class NpyWriter {
 public:
  NpyWriter(const std::string& path, const Shape& shape)
      : path_(path), temporary_(path + "." + std::to_string(getpid()) + ".tmp") {
    file_ = std::fopen(temporary_.c_str(), "wbx");
    if (file_ == nullptr) fail("cannot write ", path, ": no file can be made beside it");
    std::string sizes;
    for (const std::int64_t size : shape) sizes += std::to_string(size) + ", ";
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + sizes + "), }";
    constexpr std::size_t kStart = kMagicBytes + 4, kAlignment = 64;
    header.append(kAlignment - 1 - (kStart + header.size()) % kAlignment, ' ').push_back('\n');
    const unsigned char start[] = {1, 0, static_cast<unsigned char>(header.size() & 0xff),
                                   static_cast<unsigned char>(header.size() >> 8)};
    write(kMagic, kMagicBytes);
    write(start, sizeof start);
    write(header.data(), header.size());
  }
  NpyWriter(const NpyWriter&) = delete;
  NpyWriter& operator=(const NpyWriter&) = delete;
  ~NpyWriter() {
    if (file_ != nullptr) std::fclose(file_);
    if (!temporary_.empty()) std::remove(temporary_.c_str());
  }

  void write(const void* data, std::size_t bytes) {
    if (std::fwrite(data, 1, bytes, file_) != bytes) fail("cannot write ", path_, ": the disk is full, or failed");
  }

  void finish() {
    std::FILE* const file = file_;
    file_ = nullptr;
    if (std::fclose(file) != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) {
      fail("cannot write ", path_, ": the disk is full, or it is a folder");
    }
    temporary_.clear();
  }

 private:
  std::string path_, temporary_;
  std::FILE* file_ = nullptr;
};

}  // namespace fastervit::runner

#endif  // FASTERVIT_RUNNER_TENSOR_FILE_H
