#include "types.h"

int fastervit_interface(void) { return 1; }
const char* fastervit_version(void) { return FASTERVIT_VERSION; }
