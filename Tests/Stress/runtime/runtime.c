// Functions of Swift's runtime, as ThreadSanitizer has to have them.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>

// What a Mutex does where it is contended happens inside of a library that the sanitizer has not instrumented. These two stand
// before it and tell the sanitizer who handed the lock to whom.

void __tsan_acquire(void *address);
void __tsan_release(void *address);

#define LOCK_SLOW "$s15Synchronization12_MutexHandleV9_lockSlowyys6UInt32VF"
#define UNLOCK_SLOW "$s15Synchronization12_MutexHandleV11_unlockSlowyyF"

typedef __attribute__((swiftcall)) void lock_slow(uint32_t thread, __attribute__((swift_context)) void *mutex);
typedef __attribute__((swiftcall)) void unlock_slow(__attribute__((swift_context)) void *mutex);

static void *next(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

__attribute__((swiftcall)) void stress_lock_slow(uint32_t thread, __attribute__((swift_context)) void *mutex)
    __asm__(LOCK_SLOW);
__attribute__((swiftcall)) void stress_unlock_slow(__attribute__((swift_context)) void *mutex) __asm__(UNLOCK_SLOW);

__attribute__((swiftcall)) void stress_lock_slow(uint32_t thread, __attribute__((swift_context)) void *mutex) {
  ((lock_slow *)next(LOCK_SLOW))(thread, mutex);
  __tsan_acquire(mutex);
}

__attribute__((swiftcall)) void stress_unlock_slow(__attribute__((swift_context)) void *mutex) {
  __tsan_release(mutex);
  ((unlock_slow *)next(UNLOCK_SLOW))(mutex);
}

// Under the sanitizer the runtime takes a lock each time that a global is asked for, made or not. A fork of a process whose other
// thread has it at that moment would wait for ever. This one takes none once the global is made.

enum { FRESH = 0, MADE = 1, MAKING = 2 };

void swift_once(int32_t *state, void (*make)(void *), void *context) {
  int32_t seen = FRESH;
  if (__atomic_compare_exchange_n(state, &seen, MAKING, 0, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)) {
    make(context);
    __atomic_store_n(state, MADE, __ATOMIC_RELEASE);
    return;
  }
  while (seen == MAKING) {
    sched_yield();
    seen = __atomic_load_n(state, __ATOMIC_ACQUIRE);
  }
}
