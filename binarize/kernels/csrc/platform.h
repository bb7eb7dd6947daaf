// What Windows and POSIX call by different names. Static: no code compiled for one instruction set
// is shared with another.
#ifndef BINARIZE_PLATFORM_H
#define BINARIZE_PLATFORM_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

#include <malloc.h>

static inline void yield_thread() { SwitchToThread(); }

static inline int64_t processor_count() {
  return (int64_t)GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
}

// Memory at a multiple of 64 bytes, or null.
static inline void* allocate(int64_t bytes) { return _aligned_malloc((size_t)bytes, 64); }
static inline void release(void* memory) { _aligned_free(memory); }

#else
#include <sched.h>
#include <unistd.h>

static inline void yield_thread() { sched_yield(); }

static inline int64_t processor_count() { return (int64_t)sysconf(_SC_NPROCESSORS_ONLN); }

static inline void* allocate(int64_t bytes) {
  void* memory = nullptr;
  return posix_memalign(&memory, 64, (size_t)bytes) ? nullptr : memory;
}
static inline void release(void* memory) { free(memory); }
#endif

#endif
