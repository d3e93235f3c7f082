// What the parts of the engine share: the threads of the running block, and the way out on errors.
#ifndef FASTERVIT_EMULATOR_STATE_H
#define FASTERVIT_EMULATOR_STATE_H

#include <csetjmp>
#include <cstdint>
#include <vector>

#include "include/engine.h"

namespace fastervit::emulator {

enum { kLanes = 32, kMaxThreads = 1024 };

struct Copy {
  unsigned char* shared;
  const unsigned char* global;
  int bytes, group;
  const void* site;
};

// A thread of the block: a stack of its own, on which it runs until it must wait for others.
struct Thread {
  enum State { kReady, kConverging, kAtBarrier, kEnded } state;
  int index;
  const Collective* collective;  // kConverging: which, with what, under which mask
  void* operand;
  unsigned mask;
  const void* site;  // address in the kernel's code from which it waits
  std::vector<Copy> copies;
  int groups;               // of copies, closed ones
  const void* copies_for;   // where the kernel asked for the copy that the engine is making
  std::uint32_t* interval;  // of its warp: times that its lanes' memory was put in order
  bool started;
  jmp_buf context;

  int warp() const { return index / kLanes; }
  int lane() const { return index % kLanes; }
};

extern Thread threads[kMaxThreads];
extern Thread* running;  // null while the engine itself runs
extern Launch job;

// Ends the launch. `site`: where in the code `thread` (null: none in particular) did it; `other`: a second place, which
// the message ends with.
[[noreturn]] void fail(const Thread* thread, const void* site, const void* other, const char* format, ...)
    __attribute__((format(printf, 4, 5)));

// The same for what a launcher does: it cannot be left, the launch that follows fails.
void fail_host(const void* site, const char* what);

// memory.cpp

enum Access { kRead, kWrite, kBeginWrite, kEndWrite };  // the last two: of an asynchronous copy

int shared_limit();                             // bytes per block
void begin_block();                             // forgets what shared memory held
void order_block();                             // a barrier: what came before is ordered before what comes after
unsigned char* guard_pages(std::size_t bytes);  // accessible memory between pages that are not
bool is_shared(const void* address, int bytes);
void check_access(const Thread& thread, const void* address, std::size_t bytes, Access access, const void* site);
// Where an address lies that may not be accessed; the text lives until the next call.
const char* describe(const void* address);

}  // namespace fastervit::emulator

#endif  // FASTERVIT_EMULATOR_STATE_H
