/* libnvidia-ml.so.1 and libcuda.so.1 of two GPUs that say what the file $SCRIPTED_DRIVER says: lines "KEY VALUE", read
 * anew at each question. A key of one GPU begins with its number as NVML counts, "1.power"; what no line has is not
 * supported. CUDA counts the GPUs the other way round. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };
typedef void* Device; /* 1 + its number */

static const char* const kAddresses[] = {"0000:17:00.0", "0000:65:00.0"};

static int ask(const char* key, long long* value) {
  FILE* file = fopen(getenv("SCRIPTED_DRIVER"), "r");
  char name[64];
  int result = UNSUPPORTED;
  while (file && fscanf(file, "%63s %lld", name, value) == 2)
    if (!strcmp(name, key)) {
      result = OK;
      break;
    }
  if (file) fclose(file);
  return result;
}

static int ask_of(Device device, const char* what, long long* value) {
  char key[64];
  snprintf(key, sizeof key, "%d.%s", (int)(long)device - 1, what);
  return ask(key, value);
}

static int ask_unsigned(Device device, const char* what, unsigned* value) {
  long long found;
  int result = ask_of(device, what, &found);
  if (result == OK) *value = (unsigned)found;
  return result;
}

int nvmlInitWithFlags(unsigned flags) {
  long long refused;
  return ask("refused", &refused) == OK ? (int)refused : OK;
}
int nvmlShutdown(void) { return OK; }
const char* nvmlErrorString(int result) { return "scripted error"; }
int nvmlDeviceGetCount_v2(unsigned* count) { return *count = 2, OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device* device) {
  if (index > 1) return INVALID;
  return *device = (Device)(long)(index + 1), OK;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char* address, Device* device) {
  for (unsigned i = 0; i < 2; i++)
    if (!strcmp(address, kAddresses[i])) return nvmlDeviceGetHandleByIndex_v2(i, device);
  return NOT_FOUND;
}

int nvmlSystemGetDriverVersion(char* text, unsigned length) { return strncpy(text, "580.65.06", length), OK; }
int nvmlSystemGetCudaDriverVersion_v2(int* version) { return *version = 13020, OK; }
int nvmlDeviceGetCudaComputeCapability(Device device, int* major, int* minor) { return *major = 9, *minor = 0, OK; }
int nvmlDeviceGetClockInfo(Device device, int type, unsigned* mhz) {
  return ask_unsigned(device, type == 1 ? "sm_clock" : type == 2 ? "memory_clock" : "other_clock", mhz);
}
int nvmlDeviceGetPowerUsage(Device device, unsigned* mw) { return ask_unsigned(device, "power", mw); }
int nvmlDeviceGetTemperature(Device device, int sensor, unsigned* c) { return ask_unsigned(device, "temperature", c); }
int nvmlDeviceGetCurrentClocksThrottleReasons(Device device, unsigned long long* bits) {
  long long found;
  int result = ask_of(device, "reasons", &found);
  return *bits = (unsigned long long)found, result;
}
int nvmlDeviceGetTotalEnergyConsumption(Device device, unsigned long long* mj) {
  long long found;
  int result = ask_of(device, "energy", &found);
  return *mj = (unsigned long long)found, result;
}

typedef struct {
  unsigned pid;
  unsigned long long memory;
  unsigned gpu_instance, compute_instance;
} Process;

/* Keys "1.pid0", "1.memory0" and so on. */
int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned* count, Process* processes) {
  unsigned found = 0;
  for (;; found++) {
    char key[32];
    long long pid, memory = 0;
    snprintf(key, sizeof key, "pid%u", found);
    if (ask_of(device, key, &pid) != OK) break;
    snprintf(key, sizeof key, "memory%u", found);
    ask_of(device, key, &memory);
    if (found < *count && processes) processes[found] = (Process){(unsigned)pid, (unsigned long long)memory, 0, 0};
  }
  int result = found > *count ? TOO_SMALL : OK;
  return *count = found, result;
}

int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = 1 - ordinal, ordinal > 1 ? 101 : 0; }
int cuDeviceGetPCIBusId(char* text, int length, int device) { return strncpy(text, kAddresses[device], length), 0; }
