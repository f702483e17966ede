// The kernels' side of runtime.h.
#include "simt.h"

const simt_runtime* simt = nullptr;
thread_local simt_lane* simt_current = nullptr;

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void simt_bind(const simt_runtime* runtime) { simt = runtime; }

EXPORT simt_lane** simt_slot() { return &simt_current; }
