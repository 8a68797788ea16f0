// Device registers: loads and stores of one width each, and the barriers between them and memory that the
// device reads and writes by DMA.
//
// Pairing. A driver writes a descriptor to memory and then rings a doorbell; the device must not see the
// doorbell first. So `ci_mmio_store*` begins with a write barrier, as Linux' writel does. A driver reads an
// index from a register (or from memory) and then reads what the device wrote before it; the processor must
// not read that early. So `ci_mmio_load*` ends with a read barrier, as readl does. Between two places in
// *memory* there is no register to carry the barrier: a driver puts `ci_dma_wmb` between a descriptor's body
// and its ownership bit, and `ci_dma_rmb` between reading an ownership bit and the body behind it. The
// `_relaxed` ones order nothing but accesses to the same device: for registers that refer to no memory.
//
//              x86-64                         arm64
// dma_wmb      compiler only: stores are      dmb oshst: earlier stores before later ones, as devices see
//              made visible in order          them (outer shareable). dsb would also wait until they have
//                                             completed; a doorbell needs only the order.
// dma_rmb      compiler only: so are loads    dmb oshld: earlier loads before later loads and stores
// dma_mb       mfence: a store may be         dmb osh
//              delayed past a later load
// wmb rmb mb   sfence lfence mfence:          dsb st, dsb ld, dsb sy: completed, not only in order. For what
//              also write-combining memory    is not ordinary memory: write-combining BARs, sleep, time
#pragma once
#include "base.h"

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "no DMA barriers for this architecture"
#endif

/// Linux barrier(): the compiler keeps the order, the processor is not told.
CI_SHIM void ci_compiler_barrier(void) { __asm__ volatile("" ::: "memory"); }

#if defined(__x86_64__)
#define CI_BARRIER(x86, arm) __asm__ volatile(x86 ::: "memory")
#else
#define CI_BARRIER(x86, arm) __asm__ volatile(arm ::: "memory")
#endif

/// Linux dma_wmb(): stores to memory before it are seen by a device before those after it.
CI_SHIM void ci_dma_wmb(void) { CI_BARRIER("", "dmb oshst"); }

/// Linux dma_rmb(): loads before it are made before those after it.
CI_SHIM void ci_dma_rmb(void) { CI_BARRIER("", "dmb oshld"); }

/// Linux dma_mb(): all accesses before it, before all after it: a store, then a load of the answer.
CI_SHIM void ci_dma_mb(void) { CI_BARRIER("mfence", "dmb osh"); }

/// Linux wmb(): stores have completed, those to write-combining BARs too.
CI_SHIM void ci_wmb(void) { CI_BARRIER("sfence", "dsb st"); }

/// Linux rmb(): loads have completed.
CI_SHIM void ci_rmb(void) { CI_BARRIER("lfence", "dsb ld"); }

/// Linux mb(): everything has completed.
CI_SHIM void ci_mb(void) { CI_BARRIER("mfence", "dsb sy"); }

// x86-64: a volatile access is one instruction of its width. `may_alias`, because the same shims reach
// coherent memory, whose bytes Swift stores as other types.
// arm64: assembly with a plain base register. For a volatile access the compiler may choose an instruction
// that also updates the address, and a hypervisor that emulates the register cannot decode such an abort.
#if defined(__x86_64__)
#define CI_MMIO_WIDTH(bits, load, store, modifier)                                                   \
  typedef uint##bits##_t __attribute__((may_alias)) ci_register##bits;                               \
  CI_SHIM uint##bits##_t ci_mmio_raw_load##bits(const volatile void *_Nonnull address) {             \
    return *(const volatile ci_register##bits *)address;                                             \
  }                                                                                                  \
  CI_SHIM void ci_mmio_raw_store##bits(volatile void *_Nonnull address, uint##bits##_t value) {      \
    *(volatile ci_register##bits *)address = value;                                                  \
  }
#else
#define CI_MMIO_WIDTH(bits, load, store, modifier)                                                   \
  CI_SHIM uint##bits##_t ci_mmio_raw_load##bits(const volatile void *_Nonnull address) {             \
    uint##bits##_t value;                                                                            \
    __asm__ volatile(load " %" modifier "0, [%1]" : "=r"(value) : "r"(address) : "memory");          \
    return value;                                                                                    \
  }                                                                                                  \
  CI_SHIM void ci_mmio_raw_store##bits(volatile void *_Nonnull address, uint##bits##_t value) {      \
    __asm__ volatile(store " %" modifier "0, [%1]" : : "rZ"(value), "r"(address) : "memory");        \
  }
#endif
CI_MMIO_WIDTH(8, "ldrb", "strb", "w")
CI_MMIO_WIDTH(16, "ldrh", "strh", "w")
CI_MMIO_WIDTH(32, "ldr", "str", "w")
CI_MMIO_WIDTH(64, "ldr", "str", "x")

/// Linux readb_relaxed().
CI_SHIM uint8_t ci_mmio_load8_relaxed(const volatile void *_Nonnull address) {
  return ci_mmio_raw_load8(address);
}
/// Linux readw_relaxed().
CI_SHIM uint16_t ci_mmio_load16_relaxed(const volatile void *_Nonnull address) {
  return ci_mmio_raw_load16(address);
}
/// Linux readl_relaxed().
CI_SHIM uint32_t ci_mmio_load32_relaxed(const volatile void *_Nonnull address) {
  return ci_mmio_raw_load32(address);
}
/// Linux readq_relaxed().
CI_SHIM uint64_t ci_mmio_load64_relaxed(const volatile void *_Nonnull address) {
  return ci_mmio_raw_load64(address);
}

/// Linux readb(): memory is read after the register.
CI_SHIM uint8_t ci_mmio_load8(const volatile void *_Nonnull address) {
  uint8_t value = ci_mmio_raw_load8(address);
  ci_dma_rmb();
  return value;
}
/// Linux readw(): memory is read after the register.
CI_SHIM uint16_t ci_mmio_load16(const volatile void *_Nonnull address) {
  uint16_t value = ci_mmio_raw_load16(address);
  ci_dma_rmb();
  return value;
}
/// Linux readl(): memory is read after the register.
CI_SHIM uint32_t ci_mmio_load32(const volatile void *_Nonnull address) {
  uint32_t value = ci_mmio_raw_load32(address);
  ci_dma_rmb();
  return value;
}
/// Linux readq(): memory is read after the register.
CI_SHIM uint64_t ci_mmio_load64(const volatile void *_Nonnull address) {
  uint64_t value = ci_mmio_raw_load64(address);
  ci_dma_rmb();
  return value;
}

/// Linux writeb_relaxed().
CI_SHIM void ci_mmio_store8_relaxed(volatile void *_Nonnull address, uint8_t value) {
  ci_mmio_raw_store8(address, value);
}
/// Linux writew_relaxed().
CI_SHIM void ci_mmio_store16_relaxed(volatile void *_Nonnull address, uint16_t value) {
  ci_mmio_raw_store16(address, value);
}
/// Linux writel_relaxed().
CI_SHIM void ci_mmio_store32_relaxed(volatile void *_Nonnull address, uint32_t value) {
  ci_mmio_raw_store32(address, value);
}
/// Linux writeq_relaxed().
CI_SHIM void ci_mmio_store64_relaxed(volatile void *_Nonnull address, uint64_t value) {
  ci_mmio_raw_store64(address, value);
}

/// Linux writeb(): memory is written before the register.
CI_SHIM void ci_mmio_store8(volatile void *_Nonnull address, uint8_t value) {
  ci_dma_wmb();
  ci_mmio_raw_store8(address, value);
}
/// Linux writew(): memory is written before the register.
CI_SHIM void ci_mmio_store16(volatile void *_Nonnull address, uint16_t value) {
  ci_dma_wmb();
  ci_mmio_raw_store16(address, value);
}
/// Linux writel(): memory is written before the register.
CI_SHIM void ci_mmio_store32(volatile void *_Nonnull address, uint32_t value) {
  ci_dma_wmb();
  ci_mmio_raw_store32(address, value);
}
/// Linux writeq(): memory is written before the register.
CI_SHIM void ci_mmio_store64(volatile void *_Nonnull address, uint64_t value) {
  ci_dma_wmb();
  ci_mmio_raw_store64(address, value);
}
