// What compiled kernels ask of the engine that runs them.
#ifndef FASTERVIT_EMULATOR_ENGINE_H
#define FASTERVIT_EMULATOR_ENGINE_H

#include <cstddef>
#include <cstdint>

namespace fastervit::emulator {

struct Thread;

// A step that the lanes of a warp take together: each hands in an operand, and once all have, `execute` sees them all.
struct Collective {
  const char* name;  // as messages spell it
  void (*execute)(Thread* warp, int lanes);
  bool whole_warp;     // undefined where a warp has fewer than 32 lanes
  bool orders_memory;  // what one lane wrote before, another may read after
};
extern const Collective kSyncWarp, kShuffle, kBallot, kMmaHalf, kMmaBfloat16, kLoadMatrix, kLoadMatrixTransposed;

// Operands.
struct Shuffle {
  std::uint64_t value;
  int source;  // lane
};
struct Mma {
  float* d;
  const std::uint32_t *a, *b;
};
struct LoadMatrix {
  std::uint32_t* r;
  const void* row;
};

void converge(const Collective& collective, void* operand, unsigned mask = 0xffffffffu);
void barrier();

// Copies of the running thread: begun, gathered into groups, landed when waited for.
void copy_async(void* shared, const void* global, int bytes);
void copy_async_commit();
void copy_async_wait(int pending);

// Of `size` bytes, before it is made; `from` may be null.
void check_copy(const void* to, const void* from, std::size_t size);

unsigned char* dynamic_shared();

struct Device {
  int multiprocessors, shared_memory_per_block, shared_memory_per_multiprocessor;
};
Device device();

struct Launch {
  void (*call)(const void* kernel, const void* parameters);
  const void *kernel, *parameters;
  unsigned grid[3];
  int threads, shared_bytes;
};
int launch(const Launch& launch);

}  // namespace fastervit::emulator

#endif  // FASTERVIT_EMULATOR_ENGINE_H
