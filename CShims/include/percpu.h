// The processor that runs this thread, for data kept apart by processor.
#pragma once
#include <sched.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base.h"

// glibc registers a restartable sequence area for each thread at a fixed distance from the thread pointer;
// the kernel keeps the processor's number in it. Reading it is one load: no system call, no lock. The number
// may be out of date by the next instruction: it chooses a slot, it proves nothing about who runs there.

/// The calling thread's rseq area.
CI_SHIM const volatile char *_Nonnull ci_rseq(void) {
  return (const volatile char *)__builtin_thread_pointer() + __rseq_offset;
}

/// Whether the kernel keeps the area: not under valgrind, without rseq in the kernel, or by a tunable.
CI_SHIM int32_t ci_rseq_registered(void) { return __rseq_size != 0; }

/// The current processor, < `ci_cpu_limit`. It reads `cpu_id_start`, not `cpu_id`: without registration that
/// one is still a valid index (0), while `cpu_id` is -1 or -2.
CI_SHIM uint32_t ci_cpu(void) {
  return *(const volatile uint32_t *)(ci_rseq() + offsetof(struct rseq, cpu_id_start));
}

/// sched_setaffinity(2): keeps the calling thread on one processor below 1024. For tests and benchmarks.
CI_SHIM int32_t ci_pin_to_cpu(uint32_t cpu) {
  uint64_t mask[16] = {0};
  if (cpu >= sizeof mask * 8) return -EINVAL;
  mask[cpu / 64] = 1ull << (cpu % 64);
  return (int32_t)ci_or_errno64(syscall(SYS_sched_setaffinity, 0, sizeof mask, mask));
}

/// sched_yield(2): lets other threads run.
CI_SHIM void ci_yield(void) { (void)sched_yield(); }

/// Tells the processor that this is a spin loop.
CI_SHIM void ci_cpu_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  __asm__ volatile("yield" ::: "memory");
#endif
}

/// The spin locks that the calling thread holds: debug builds count them, so that they find out who asks for memory
/// with one held.
extern _Thread_local int32_t ci_spin_locks_held;

/// Counts some more, or fewer, and tells how many there are.
CI_SHIM int32_t ci_count_spin_locks(int32_t change) { return ci_spin_locks_held += change; }

/// One more than the highest processor number that this machine can ever have: the length of a table by
/// `ci_cpu`. Not the number of processors: numbers may have gaps.
int32_t ci_cpu_limit(void);
