// Checks every access to memory that a kernel makes: the compiler calls __tsan_... before each (-fsanitize=thread).
//
// Two accesses to a byte of shared memory by different threads, one of them a write, need an order: a __syncthreads
// between them or, within a warp, a __syncwarp. Time is counted in block intervals (up to a barrier) and, within one,
// in warp intervals (up to a __syncwarp). It suffices to remember of each byte the last write and two reads. An earlier
// write either raced, which ended the launch, or is in order with the last one. As warps run one after another from
// barrier to barrier, whoever writes next is of the warp that read last, or of a later one: a read by an earlier warp
// is all it takes to be unordered, and within the warp there are only two cases, one other lane having read or several.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "state.h"

// The variables declared __shared__.
extern "C" unsigned char fastervit_shared_begin[], fastervit_shared_end[];

namespace fastervit::emulator {
namespace {

enum { kMaxShared = 256 * 1024, kMaxGuarded = 256 };

struct Event {
  std::uint32_t block_interval, warp_interval, site;
  std::uint16_t thread;
  bool under_way;  // an asynchronous write that has not landed
};

struct Byte {
  Event write;
  Event read;   // the last one by the first warp that read in this block interval,
  Event other;  // and one by another lane of that warp in the same warp interval
};

struct Shared {
  unsigned char* begin;
  std::size_t size;
  Byte bytes[kMaxShared];
};
Shared dynamic, fixed;

std::uint32_t block_interval, block_began;

unsigned char* arena() {
  static unsigned char* const begin = guard_pages(kMaxShared);
  return begin;
}

struct Guarded {
  unsigned char* begin;
  std::size_t size;
  unsigned char* pages;
  std::size_t pages_size;
} guarded[kMaxGuarded];
int guarded_count;

std::uintptr_t image() {
  static const std::uintptr_t base = [] {
    Dl_info info;
    return dladdr(reinterpret_cast<void*>(&check_access), &info) != 0 ? reinterpret_cast<std::uintptr_t>(info.dli_fbase)
                                                                      : 0;
  }();
  return base;
}

std::size_t page_size() {
  static const std::size_t bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

int setting(const char* name, int fallback) {
  const char* value = std::getenv(name);
  return value == nullptr ? fallback : std::atoi(value);
}

// Whether nothing puts the event before what the thread does now.
bool unordered(const Event& event, const Thread& thread) {
  if (event.block_interval != block_interval || event.thread == thread.index) return false;
  return event.thread / kLanes != thread.warp() || event.warp_interval == *thread.interval;
}

[[noreturn]] void fail_race(const Thread& thread, const void* site, const char* does, std::size_t bytes,
                            std::size_t offset, const Event& event, const char* has) {
  fail(&thread, site, reinterpret_cast<const void*>(image() + event.site),
       "race: %s %zu bytes of shared memory, of which thread %d (warp %d, lane %d) has %s the one at offset %zu with "
       "no barrier in between, ",
       does, bytes, event.thread, event.thread / kLanes, event.thread % kLanes, has, offset);
}

void check_shared(Shared& shared, const Thread& thread, std::size_t offset, std::size_t bytes, Access access,
                  const void* site) {
  const Event now = {block_interval, *thread.interval,
                     static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(site) - image()),
                     static_cast<std::uint16_t>(thread.index), access == kBeginWrite};
  const char* does = access == kRead ? "reads" : access == kWrite ? "writes" : "copies";
  for (std::size_t at = offset; at < offset + bytes; ++at) {
    Byte& byte = shared.bytes[at];
    if (byte.write.under_way && access != kEndWrite && byte.write.block_interval >= block_began) {
      fail(&thread, site, reinterpret_cast<const void*>(image() + byte.write.site),
           "%s %zu bytes of shared memory while thread %d's asynchronous copy to offset %zu is under way, begun at ",
           does, bytes, byte.write.thread, at);
    }
    if (unordered(byte.write, thread)) fail_race(thread, site, does, bytes, at, byte.write, "written");
    if (access == kRead) {
      if (byte.write.block_interval < block_began) {
        fail(&thread, site, nullptr,
             "reads %zu bytes of shared memory, of which the one at offset %zu was never written", bytes, at);
      }
      const Event& read = byte.read;
      if (read.block_interval == block_interval && read.thread / kLanes != thread.warp()) continue;
      if (unordered(read, thread)) byte.other = read;
      byte.read = now;
    } else {
      for (const Event* event : {&byte.read, &byte.other}) {
        if (unordered(*event, thread)) fail_race(thread, site, does, bytes, at, *event, "read");
      }
      byte.write = now;
    }
  }
}

// The guarded memory that lies on the pages of an address.
const Guarded* guarded_near(const unsigned char* address) {
  for (int i = 0; i < guarded_count; ++i) {
    if (static_cast<std::size_t>(address - guarded[i].pages) < guarded[i].pages_size) return &guarded[i];
  }
  return nullptr;
}

}  // namespace

int shared_limit() { return std::min<int>(setting("FASTERVIT_EMULATOR_SHARED", 227 * 1024), kMaxShared); }

Device device() { return {setting("FASTERVIT_EMULATOR_MULTIPROCESSORS", 2), shared_limit(), 228 * 1024}; }

unsigned char* dynamic_shared() { return dynamic.begin; }

unsigned char* guard_pages(std::size_t bytes) {
  const std::size_t page = page_size(), inner = (bytes + page - 1) / page * page;
  void* outer = mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (outer == MAP_FAILED) std::perror("emulator: mmap"), std::abort();
  unsigned char* begin = static_cast<unsigned char*>(outer) + page;
  mprotect(begin, inner, PROT_READ | PROT_WRITE);
  return begin;
}

void begin_block() {
  block_began = ++block_interval;
  dynamic.size = static_cast<std::size_t>(job.shared_bytes);
  dynamic.begin = arena() + kMaxShared - (dynamic.size + 15) / 16 * 16;
  fixed.begin = fastervit_shared_begin;
  fixed.size = static_cast<std::size_t>(fastervit_shared_end - fastervit_shared_begin);
  if (fixed.size > kMaxShared) fail(nullptr, nullptr, nullptr, "%zu bytes of __shared__ variables", fixed.size);
}

void order_block() { ++block_interval; }

const char* describe(const void* address) {
  static char text[160];
  const auto at = static_cast<const unsigned char*>(address);
  if (static_cast<std::size_t>(at - (arena() - page_size())) < kMaxShared + 2 * page_size()) {
    std::snprintf(text, sizeof text, "offset %td of shared memory of %zu bytes", at - dynamic.begin, dynamic.size);
  } else if (const Guarded* memory = guarded_near(at)) {
    std::snprintf(text, sizeof text, "offset %td of a tensor of %zu bytes", at - memory->begin, memory->size);
  } else {
    std::snprintf(text, sizeof text, "%p, where no memory is", address);
  }
  return text;
}

bool is_shared(const void* address, int bytes) {
  for (const Shared* shared : {&dynamic, &fixed}) {
    const auto offset = static_cast<std::size_t>(static_cast<const unsigned char*>(address) - shared->begin);
    if (offset < shared->size && offset + static_cast<std::size_t>(bytes) <= shared->size) return true;
  }
  return false;
}

void check_access(const Thread& thread, const void* address, std::size_t bytes, Access access, const void* site) {
  const auto at = static_cast<const unsigned char*>(address);
  const char* does = access == kRead ? "reads" : "writes";
  if (static_cast<std::size_t>(at - arena()) < kMaxShared + page_size()) {
    const auto offset = static_cast<std::size_t>(at - dynamic.begin);
    if (offset >= dynamic.size || offset + bytes > dynamic.size) {
      fail(&thread, site, nullptr, "%s %zu bytes at %s", does, bytes, describe(address));
    }
    check_shared(dynamic, thread, offset, bytes, access, site);
  } else if (static_cast<std::size_t>(at - fixed.begin) < fixed.size) {
    check_shared(fixed, thread, static_cast<std::size_t>(at - fixed.begin), bytes, access, site);
  } else if (const Guarded* memory = guarded_near(at)) {
    const auto offset = static_cast<std::size_t>(at - memory->begin);
    if (offset >= memory->size || offset + bytes > memory->size) {
      fail(&thread, site, nullptr, "%s %zu bytes at %s", does, bytes, describe(address));
    }
  }
}

void copy_async(void* shared, const void* global, int bytes) {
  const void* site = __builtin_return_address(0);
  Thread& self = *running;
  const auto size = static_cast<std::uintptr_t>(bytes);
  for (const void* address : {static_cast<const void*>(shared), global}) {
    if (reinterpret_cast<std::uintptr_t>(address) % size != 0) {
      fail(&self, site, nullptr, "asynchronous copy of %d bytes %s %p, which is no multiple", bytes,
           address == global ? "from" : "to", address);
    }
  }
  if (!is_shared(shared, bytes)) fail(&self, site, nullptr, "asynchronous copy to %s", describe(shared));
  check_access(self, global, size, kRead, site);
  check_access(self, shared, size, kBeginWrite, site);
  self.copies_for = site;
  const volatile auto* source = static_cast<const unsigned char*>(global);
  static_cast<void>(source[0]), static_cast<void>(source[bytes - 1]);  // a fault should come now
  self.copies_for = nullptr;
  self.copies.push_back(
      {static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, self.groups, site});
}

void copy_async_commit() { ++running->groups; }

void copy_async_wait(int pending) {
  Thread& self = *running;
  std::size_t landed = 0;
  for (; landed < self.copies.size() && self.copies[landed].group < self.groups - pending; ++landed) {
    const Copy& copy = self.copies[landed];
    std::memcpy(copy.shared, copy.global, static_cast<std::size_t>(copy.bytes));
    check_access(self, copy.shared, static_cast<std::size_t>(copy.bytes), kEndWrite, copy.site);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<std::ptrdiff_t>(landed));
}

namespace {

void touch(const void* address, std::size_t bytes, Access access, const void* site) {
  if (running != nullptr) check_access(*running, address, bytes, access, site);  // else it is the launcher
}

// Undefined behaviour, of a kernel or of its launcher.
void undefined(const void* site, const char* what) {
  if (running == nullptr) return fail_host(site, what);
  fail(running, site, nullptr, "%s", what);
}

}  // namespace

void check_copy(const void* to, const void* from, std::size_t size) {
  if (from != nullptr) touch(from, size, kRead, __builtin_return_address(0));
  touch(to, size, kWrite, __builtin_return_address(0));
}

}  // namespace fastervit::emulator

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Memory whose accesses are checked to the byte. A page that nobody may touch follows, up to 15 bytes after its end so
// that its address is a multiple of 16. NULL: there are too many of them already.
EXPORTED void* fastervit_emulator_allocate(std::size_t bytes) {
  using namespace fastervit::emulator;
  if (guarded_count == kMaxGuarded) return nullptr;
  const std::size_t size = (bytes + 15) / 16 * 16, page = page_size(), inner = (size + page - 1) / page * page;
  unsigned char* begin = guard_pages(size);
  std::memset(begin, 0xff, inner);
  guarded[guarded_count++] = {begin + inner - size, bytes, begin - page, inner + 2 * page};
  return begin + inner - size;
}

EXPORTED void fastervit_emulator_release(void* memory) {
  using namespace fastervit::emulator;
  Guarded* const end = guarded + guarded_count;
  Guarded* const it = std::find_if(guarded, end, [&](const Guarded& g) { return g.begin == memory; });
  if (it == end) return;
  munmap(it->pages, it->pages_size);
  *it = guarded[--guarded_count];
}

// What compilers call.

#define FROM __builtin_return_address(0)
#define ACCESSES(bytes)                                                                                        \
  extern "C" void __tsan_read##bytes(void* p) { fastervit::emulator::touch(p, bytes, kRead, FROM); }           \
  extern "C" void __tsan_write##bytes(void* p) { fastervit::emulator::touch(p, bytes, kWrite, FROM); }         \
  extern "C" void __tsan_unaligned_read##bytes(void* p) { fastervit::emulator::touch(p, bytes, kRead, FROM); } \
  extern "C" void __tsan_unaligned_write##bytes(void* p) { fastervit::emulator::touch(p, bytes, kWrite, FROM); }
using fastervit::emulator::kRead, fastervit::emulator::kWrite;
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
extern "C" void __tsan_read_range(void* p, std::size_t n) { fastervit::emulator::touch(p, n, kRead, FROM); }
extern "C" void __tsan_write_range(void* p, std::size_t n) { fastervit::emulator::touch(p, n, kWrite, FROM); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}

#define UNDEFINED(name, what, ...) \
  extern "C" void __ubsan_handle_##name(__VA_ARGS__) { fastervit::emulator::undefined(FROM, what); }
UNDEFINED(type_mismatch_v1, "an address that is not aligned to its type", void*, std::uintptr_t)
UNDEFINED(out_of_bounds, "index out of the bounds of an array", void*, std::uintptr_t)
UNDEFINED(add_overflow, "integer overflow in an addition", void*, std::uintptr_t, std::uintptr_t)
UNDEFINED(sub_overflow, "integer overflow in a subtraction", void*, std::uintptr_t, std::uintptr_t)
UNDEFINED(mul_overflow, "integer overflow in a multiplication", void*, std::uintptr_t, std::uintptr_t)
UNDEFINED(negate_overflow, "integer overflow in a negation", void*, std::uintptr_t)
UNDEFINED(divrem_overflow, "division by zero, or its result overflows", void*, std::uintptr_t, std::uintptr_t)
UNDEFINED(shift_out_of_bounds, "shift by more bits than there are, or out of them", void*, std::uintptr_t,
          std::uintptr_t)
