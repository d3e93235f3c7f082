// Runs kernels on one CPU thread: block after block, each GPU thread on a stack of its own.
//
// A thread runs until it reaches a collective of its warp, a barrier or its end; then the next one does. When all lanes
// of a warp have arrived at the same collective it takes place; when all threads are at the barrier, or at their end,
// the block goes on. Anything else can never go on, and is reported.
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "state.h"

namespace fastervit::emulator {

Thread threads[kMaxThreads];
Thread* running;
Launch job;

// The names that kernels know as constants.
struct Index {
  unsigned x, y, z;
};
Index thread_index __asm__("threadIdx"), block_index __asm__("blockIdx");
Index block_size __asm__("blockDim"), grid_size __asm__("gridDim");

namespace {

enum { kStackBytes = 256 * 1024, kInvalidValue = 1, kInvalidConfiguration = 9, kLaunchFailure = 719 };

std::uint32_t warp_intervals[kMaxThreads / kLanes];
jmp_buf engine, failure;
pthread_t launcher;
int order = std::getenv("FASTERVIT_EMULATOR_ORDER") ? std::atoi(std::getenv("FASTERVIT_EMULATOR_ORDER")) : 0;
std::uint32_t random_state;
std::string error, host_error;

// Kept until the stack is one that the report can be written on.
struct {
  char what[512];
  const Thread* thread;
  const void *site, *other;
} failed;

// `count` indices in the order asked for.
struct Order {
  int index[kMaxThreads];
  explicit Order(int count) {
    for (int i = 0; i < count; ++i) {
      index[i] = order < 0 ? count - 1 - i : i;
      if (order <= 0) continue;
      random_state = random_state * 1664525u + 1013904223u;
      const int j = static_cast<int>((random_state >> 8) % static_cast<unsigned>(i + 1));
      std::swap(index[i], index[j]);
    }
  }
};

// Where in the sources an address of this library lies: the innermost line that is not of the emulator's own headers,
// and the function that all was inlined into.
struct Place {
  std::string function, line;

  explicit Place(const void* address) {
    Dl_info image;
    if (address == nullptr || dladdr(address, &image) == 0) return;
    const auto offset = static_cast<const char*>(address) - static_cast<const char*>(image.dli_fbase);
    char text[1024];
    std::snprintf(text, sizeof text, "addr2line -Cfie '%s' %#tx 2>/dev/null", image.dli_fname, offset);
    std::FILE* frames = popen(text, "r");
    const auto next = [&](const char* end) {
      return frames != nullptr && std::fgets(text, sizeof text, frames) != nullptr
                 ? std::string(text, std::strcspn(text, end))
                 : std::string();
    };
    for (std::string name = next("\n"); !name.empty(); name = next("\n")) {
      function = name;
      const std::string at = next(" \n");  // without "(discriminator 1)"
      if (line.empty() && at[0] != '?' && at.find("emulator/include/") == std::string::npos) line = at;
    }
    if (frames != nullptr) pclose(frames);
    if (!line.empty()) return;
    std::snprintf(text, sizeof text, "%s+%#tx", image.dli_fname, offset);
    line = text;
  }
};

// Of the instruction before: where the caller was left.
Place left_at(const void* address) {
  return Place(address == nullptr ? nullptr : static_cast<const char*>(address) - 1);
}

void report() {
  const Place kernel(job.kernel), site = left_at(failed.site), other = left_at(failed.other);
  char where[128] = "";
  if (const Thread* t = failed.thread) {
    std::snprintf(where, sizeof where, ", block (%u, %u, %u), thread %d (warp %d, lane %d)", block_index.x,
                  block_index.y, block_index.z, t->index, t->warp(), t->lane());
  }
  error = kernel.function + where + (site.line.empty() ? "" : ", " + site.line) + ": " + failed.what + other.line;
  std::fprintf(stderr, "emulator: %s\n", error.c_str());
}

void leave_fiber() {
  if (_setjmp(running->context) == 0) _longjmp(engine, 1);
}

// What every stack runs, for one block after another.
void live() {
  for (;;) {
    job.call(job.kernel, job.parameters);
    Thread& self = *running;
    if (!self.copies.empty()) {
      fail(&self, nullptr, nullptr, "ends while %zu of its asynchronous copies are under way", self.copies.size());
    }
    self.state = Thread::kEnded;
    leave_fiber();
  }
}

void resume(Thread& thread) {
  running = &thread;
  thread_index.x = static_cast<unsigned>(thread.index);
  if (_setjmp(engine) == 0) {
    if (thread.started) _longjmp(thread.context, 1);
    thread.started = true;
    static unsigned char* stacks[kMaxThreads];
    unsigned char*& stack = stacks[thread.index];
    if (stack == nullptr) stack = guard_pages(kStackBytes);
    ucontext_t start;
    getcontext(&start);
    start.uc_stack = {stack, 0, kStackBytes};
    start.uc_link = nullptr;
    makecontext(&start, live, 0);
    setcontext(&start);
  }
  running = nullptr;
}

const char* waits_at(const Thread& thread) {
  switch (thread.state) {
    case Thread::kConverging: return thread.collective->name;
    case Thread::kAtBarrier: return "__syncthreads";
    default: return "its end";
  }
}

[[noreturn]] void diverged(const Thread& a, const Thread& b) {
  const Thread& waits = a.state == Thread::kEnded ? b : a;
  const Thread& other = a.state == Thread::kEnded ? a : b;
  fail(&waits, waits.site, other.site, "waits at %s, but thread %d (warp %d, lane %d) is at %s%s", waits_at(waits),
       other.index, other.warp(), other.lane(), waits_at(other), other.site == nullptr ? "" : ", ");
}

// Runs a warp until all its lanes are at the barrier or at their end.
void run_warp(Thread* warp, int lanes) {
  for (;;) {
    const Order lane(lanes);
    for (int i = 0; i < lanes; ++i) {
      Thread& thread = warp[lane.index[i]];
      if (thread.state == Thread::kReady) resume(thread);
    }
    for (int i = 1; i < lanes; ++i) {
      const bool same = warp[i].state == warp[0].state &&
                        (warp[0].state != Thread::kConverging || warp[i].collective == warp[0].collective);
      if (!same) diverged(warp[0], warp[i]);
    }
    if (warp[0].state != Thread::kConverging) return;

    const Collective& collective = *warp[0].collective;
    const unsigned all = lanes == kLanes ? 0xffffffffu : (1u << lanes) - 1;
    for (int i = 0; i < lanes; ++i) {
      if ((warp[i].mask & all) != all) {
        fail(&warp[i], warp[i].site, nullptr, "%s of some lanes only (mask %#x): not emulated, name all lanes",
             collective.name, warp[i].mask);
      }
      warp[i].state = Thread::kReady;
    }
    if (collective.whole_warp && lanes < kLanes) {
      fail(&warp[0], warp[0].site, nullptr, "%s in a warp of %d threads; it needs 32", collective.name, lanes);
    }
    collective.execute(warp, lanes);
    if (collective.orders_memory) ++*warp[0].interval;
  }
}

void run_block() {
  begin_block();
  for (int i = 0; i < job.threads; ++i) {
    threads[i].state = Thread::kReady;
    threads[i].index = i;
    threads[i].groups = 0;
    threads[i].copies_for = nullptr;
    threads[i].copies.clear();
    threads[i].interval = &warp_intervals[i / kLanes];
  }
  const int warps = (job.threads + kLanes - 1) / kLanes;
  for (;;) {
    const Order warp(warps);
    for (int i = 0; i < warps; ++i) {
      const int first = warp.index[i] * kLanes;
      run_warp(threads + first, std::min<int>(kLanes, job.threads - first));
    }
    for (int i = 1; i < warps; ++i) {
      if (threads[i * kLanes].state != threads[0].state) diverged(threads[0], threads[i * kLanes]);
    }
    if (threads[0].state == Thread::kEnded) return;
    order_block();
    for (int i = 0; i < job.threads; ++i) threads[i].state = Thread::kReady;
  }
}

void on_fault(int number, siginfo_t* info, void* context) {
  if (!pthread_equal(pthread_self(), launcher)) {  // not ours: let it end the process
    signal(number, SIG_DFL);
    return;
  }
  const auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  const auto at = reinterpret_cast<const char*>(machine.gregs[REG_RIP]);
#else
  const auto at = reinterpret_cast<const char*>(machine.pc);
#endif
  const void* site = running != nullptr && running->copies_for != nullptr ? running->copies_for : at + 1;
  fail(running, site, nullptr, "accesses %s", describe(info->si_addr));
}

// Faults go to the report instead of ending the process, for as long as this lives.
class Faults {
 public:
  Faults() {
    static unsigned char* const stack = guard_pages(kStackBytes);  // a kernel's own may be what overflowed
    const stack_t alternative = {stack, 0, kStackBytes};
    sigaltstack(&alternative, &stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &segmentation_);
    sigaction(SIGBUS, &action, &bus_);
  }
  ~Faults() {
    sigaction(SIGSEGV, &segmentation_, nullptr);
    sigaction(SIGBUS, &bus_, nullptr);
    sigaltstack(&stack_, nullptr);
  }

 private:
  stack_t stack_;
  struct sigaction segmentation_, bus_;
};

int refuse(int code, const char* format, ...) {
  char text[256];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof text, format, values);
  va_end(values);
  error = text;
  std::fprintf(stderr, "emulator: %s\n", text);
  return code;
}

bool run_grid() {
  if (_setjmp(failure) != 0) {
    for (Thread& thread : threads) thread.started = false;  // whoever was on its way there stays there
    running = nullptr;
    return false;
  }
  const unsigned long blocks = 1ul * grid_size.x * grid_size.y * grid_size.z;
  for (unsigned long i = 0; i < blocks; ++i) {
    const unsigned long block = order < 0 ? blocks - 1 - i : i;
    block_index = {static_cast<unsigned>(block % grid_size.x), static_cast<unsigned>(block / grid_size.x % grid_size.y),
                   static_cast<unsigned>(block / grid_size.x / grid_size.y)};
    run_block();
  }
  return true;
}

}  // namespace

void fail(const Thread* thread, const void* site, const void* other, const char* format, ...) {
  va_list values;
  va_start(values, format);
  std::vsnprintf(failed.what, sizeof failed.what, format, values);
  va_end(values);
  failed.thread = thread;
  failed.site = site;
  failed.other = other;
  _longjmp(failure, 1);
}

void fail_host(const void* site, const char* what) {
  const Place place = left_at(site);
  host_error = place.function + ", " + place.line + ": " + what;
}

void converge(const Collective& collective, void* operand, unsigned mask) {
  Thread& self = *running;
  self.state = Thread::kConverging;
  self.collective = &collective;
  self.operand = operand;
  self.mask = mask;
  self.site = __builtin_return_address(0);
  leave_fiber();
}

void barrier() {
  running->state = Thread::kAtBarrier;
  running->site = __builtin_return_address(0);
  leave_fiber();
}

int launch(const Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  error.clear();
  if (!host_error.empty()) {
    const std::string text = std::move(host_error);
    host_error.clear();
    return refuse(kLaunchFailure, "%s", text.c_str());
  }
  const auto [x, y, z] = launch.grid;
  if (x < 1 || x > 0x7fffffffu || y < 1 || y > 65535 || z < 1 || z > 65535) {
    return refuse(kInvalidConfiguration, "grid (%u, %u, %u): from 1 to (2^31 - 1, 65535, 65535)", x, y, z);
  }
  if (launch.threads < 1 || launch.threads > kMaxThreads) {
    return refuse(kInvalidConfiguration, "%d threads in a block: from 1 to %d", launch.threads, kMaxThreads);
  }
  if (launch.shared_bytes < 0 || launch.shared_bytes > shared_limit()) {
    return refuse(kInvalidValue, "%d bytes of shared memory: up to %d", launch.shared_bytes, shared_limit());
  }
  job = launch;
  launcher = pthread_self();
  grid_size = {x, y, z};
  block_size = {static_cast<unsigned>(launch.threads), 1, 1};
  random_state = static_cast<std::uint32_t>(order);
  {
    const Faults faults;
    if (run_grid()) return 0;
  }
  report();
  return kLaunchFailure;
}

}  // namespace fastervit::emulator

#define EXPORTED extern "C" __attribute__((visibility("default")))

// What went wrong in the last launch; empty where nothing did.
EXPORTED const char* fastervit_emulator_error() { return fastervit::emulator::error.c_str(); }

// The order from now on: 0 ascending, -1 blocks, warps, lanes descending, else warps and lanes shuffled, by this seed.
EXPORTED void fastervit_emulator_order(int order) { fastervit::emulator::order = order; }
