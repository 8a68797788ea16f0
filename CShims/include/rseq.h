// Restartable sequences (rseq(2)): a few instructions that run to their last store on one processor, or not at all.
//
// Between "1:" and "2:" the kernel sends a thread that was preempted, migrated or interrupted by a signal to "4:", which the
// signature precedes. The one store before "2:" commits. So no other thread of this processor comes between load and
// store, and neither lock nor atomic operation is needed. Threads of other processors never touch what is changed
// here, unless ci_membarrier_rseq() stands between.
#pragma once
#include <linux/membarrier.h>
#include <sys/rseq.h>

#include "percpu.h"

/// A stack of addresses; they follow it in memory.
struct ci_magazine {
  /// How many it holds: what a restartable sequence commits.
  uint32_t count;
  /// How many it can hold; 0 for the magazine that stands for none.
  uint32_t capacity;
  /// The next in a list.
  struct ci_magazine *_Nullable next;
};

/// What ``ci_rseq_pop`` gives when it gives none.
#define CI_NO_ADDRESS UINT64_MAX

/// Whether restartable sequences can be used, and membarrier(2) can end those of other processors, for which this process
/// is registered. Not with ThreadSanitizer, which does not see them; nor with SWIFT_IOMMU_RSEQ=0 in the environment.
int32_t ci_rseq_usable(void);

/// membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ): when it returns 0, each restartable sequence of this process that had begun
/// before has committed or starts anew.
CI_SHIM int32_t ci_membarrier_rseq(void) {
  return (int32_t)ci_or_errno64(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, 0, 0));
}

/// The number of addresses in a magazine that another thread may be changing.
CI_SHIM uint32_t ci_magazine_count(const struct ci_magazine *_Nonnull magazine) {
  return __atomic_load_n(&magazine->count, __ATOMIC_RELAXED);
}

#if defined(__x86_64__)
// Announces the sequence, and leaves for label `missed` when the thread is not on the processor.
#define CI_RSEQ_BEGIN                                      \
  ".pushsection __rseq_cs, \"aw\"\n\t"                     \
  ".balign 32\n"                                           \
  "3:\n\t"                                                 \
  ".long 0, 0\n\t"                                         \
  ".quad 1f, 2f - 1f, 4f\n\t"                              \
  ".popsection\n\t"                                        \
  "leaq 3b(%%rip), %[magazine]\n\t"                        \
  "movq %[magazine], %%fs:%c[sequence](%[area])\n"         \
  "1:\n\t"                                                 \
  "cmpl %[cpu], %%fs:%c[number](%[area])\n\t"              \
  "jne %l[missed]\n\t"
#define CI_RSEQ_END                                        \
  "2:\n\t"                                                 \
  ".pushsection __rseq_failure, \"ax\"\n\t"                \
  ".byte 0x0f, 0xb9, 0x3d\n\t"                             \
  ".long %c[signature]\n"                                  \
  "4:\n\t"                                                 \
  "jmp %l[missed]\n\t"                                     \
  ".popsection\n\t"
#define CI_RSEQ_AREA __rseq_offset
#define CI_RSEQ_POP                                        \
  "movq (%[loaded]), %[magazine]\n\t"                      \
  "movl (%[magazine]), %k[count]\n\t"                      \
  "testl %k[count], %k[count]\n\t"                         \
  "je %l[missed]\n\t"                                      \
  "movq 8(%[magazine],%[count],8), %[address]\n\t"         \
  "cmpq %[highest], %[address]\n\t"                        \
  "ja %l[missed]\n\t"                                      \
  "subl $1, %k[count]\n\t"                                 \
  "movl %k[count], (%[magazine])\n"
#define CI_RSEQ_PUSH                                       \
  "movq (%[loaded]), %[magazine]\n\t"                      \
  "movl (%[magazine]), %k[count]\n\t"                      \
  "cmpl 4(%[magazine]), %k[count]\n\t"                     \
  "jae %l[missed]\n\t"                                     \
  "movq %[address], 16(%[magazine],%[count],8)\n\t"        \
  "addl $1, %k[count]\n\t"                                 \
  "movl %k[count], (%[magazine])\n"
#define CI_RSEQ_SWAP                                       \
  "cmpq %[expected], (%[loaded])\n\t"                      \
  "jne %l[missed]\n\t"                                     \
  "movq %[other], (%[loaded])\n"
#elif defined(__aarch64__)
#define CI_RSEQ_BEGIN                                      \
  ".pushsection __rseq_cs, \"aw\"\n\t"                     \
  ".balign 32\n"                                           \
  "3:\n\t"                                                 \
  ".long 0, 0\n\t"                                         \
  ".quad 1f, 2f - 1f, 4f\n\t"                              \
  ".popsection\n\t"                                        \
  "adrp %[magazine], 3b\n\t"                               \
  "add %[magazine], %[magazine], :lo12:3b\n\t"             \
  "str %[magazine], [%[area], %[sequence]]\n"              \
  "1:\n\t"                                                 \
  "ldr %w[magazine], [%[area], %[number]]\n\t"             \
  "cmp %w[magazine], %w[cpu]\n\t"                          \
  "b.ne %l[missed]\n\t"
#define CI_RSEQ_END                                        \
  "2:\n\t"                                                 \
  ".pushsection __rseq_failure, \"ax\"\n\t"                \
  ".long %c[signature]\n"                                  \
  "4:\n\t"                                                 \
  "b %l[missed]\n\t"                                       \
  ".popsection\n\t"
#define CI_RSEQ_AREA ci_rseq()
#define CI_RSEQ_POP                                        \
  "ldr %[magazine], [%[loaded]]\n\t"                       \
  "ldr %w[count], [%[magazine]]\n\t"                       \
  "cbz %w[count], %l[missed]\n\t"                          \
  "add %[address], %[magazine], %[count], lsl #3\n\t"      \
  "ldr %[address], [%[address], #8]\n\t"                   \
  "cmp %[address], %[highest]\n\t"                         \
  "b.hi %l[missed]\n\t"                                    \
  "sub %w[count], %w[count], #1\n\t"                       \
  "str %w[count], [%[magazine]]\n"
#define CI_RSEQ_PUSH                                       \
  "ldr %[magazine], [%[loaded]]\n\t"                       \
  "ldp %w[count], %w[place], [%[magazine]]\n\t"            \
  "cmp %w[count], %w[place]\n\t"                           \
  "b.hs %l[missed]\n\t"                                    \
  "add %[place], %[magazine], %[count], lsl #3\n\t"        \
  "str %[address], [%[place], #16]\n\t"                    \
  "add %w[count], %w[count], #1\n\t"                       \
  "str %w[count], [%[magazine]]\n"
#define CI_RSEQ_SWAP                                       \
  "ldr %[magazine], [%[loaded]]\n\t"                       \
  "cmp %[magazine], %[expected]\n\t"                       \
  "b.ne %l[missed]\n\t"                                    \
  "str %[other], [%[loaded]]\n"
#endif

#if defined(CI_RSEQ_BEGIN)
#define CI_RSEQ_INPUTS                                                                                              \
  [area] "r"(CI_RSEQ_AREA), [cpu] "r"(cpu), [sequence] "i"(offsetof(struct rseq, rseq_cs)),                         \
      [number] "i"(offsetof(struct rseq, cpu_id)), [signature] "i"(RSEQ_SIG), [loaded] "r"(loaded)

/// Pops the last address of the magazine at `loaded`, if the thread is on that processor, there is one, and it is at most `highest`;
/// else CI_NO_ADDRESS.
CI_SHIM uint64_t ci_rseq_pop(const void *_Nonnull loaded, uint32_t cpu, uint64_t highest) {
  uint64_t magazine, count, address;
  __asm__ goto(CI_RSEQ_BEGIN CI_RSEQ_POP CI_RSEQ_END
               : [magazine] "=&r"(magazine), [count] "=&r"(count), [address] "=&r"(address)
               : CI_RSEQ_INPUTS, [highest] "r"(highest)
               : "memory", "cc"
               : missed);
  return address;
missed:
  return CI_NO_ADDRESS;
}

/// Pushes an address onto the magazine at `loaded`; 0 when the thread is not on that processor or the magazine is full.
CI_SHIM int32_t ci_rseq_push(const void *_Nonnull loaded, uint32_t cpu, uint64_t address) {
  uint64_t magazine, count;
#if defined(__aarch64__)
  uint64_t place;
  __asm__ goto(CI_RSEQ_BEGIN CI_RSEQ_PUSH CI_RSEQ_END
               : [magazine] "=&r"(magazine), [count] "=&r"(count), [place] "=&r"(place)
               : CI_RSEQ_INPUTS, [address] "r"(address)
               : "memory", "cc"
               : missed);
#else
  __asm__ goto(CI_RSEQ_BEGIN CI_RSEQ_PUSH CI_RSEQ_END
               : [magazine] "=&r"(magazine), [count] "=&r"(count)
               : CI_RSEQ_INPUTS, [address] "r"(address)
               : "memory", "cc"
               : missed);
#endif
  return 1;
missed:
  return 0;
}

/// Stores `other` at `loaded`, if the thread is on that processor and `expected` stands there; else 0. After it no
/// sequence uses `expected`: the others of this processor were preempted, and start anew.
CI_SHIM int32_t ci_rseq_swap(void *_Nonnull loaded, uint32_t cpu, const void *_Nonnull expected, void *_Nonnull other) {
  uint64_t magazine;
  __asm__ goto(CI_RSEQ_BEGIN CI_RSEQ_SWAP CI_RSEQ_END
               : [magazine] "=&r"(magazine)
               : CI_RSEQ_INPUTS, [expected] "r"(expected), [other] "r"(other)
               : "memory", "cc"
               : missed);
  return 1;
missed:
  return 0;
}
#else
// No sequences are written for this processor, and ci_rseq_usable() says so.
CI_SHIM uint64_t ci_rseq_pop(const void *_Nonnull loaded, uint32_t cpu, uint64_t highest) { return CI_NO_ADDRESS; }
CI_SHIM int32_t ci_rseq_push(const void *_Nonnull loaded, uint32_t cpu, uint64_t address) { return 0; }
CI_SHIM int32_t ci_rseq_swap(void *_Nonnull loaded, uint32_t cpu, const void *_Nonnull expected, void *_Nonnull other) {
  return 0;
}
#endif
