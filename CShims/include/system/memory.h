// Memory: mapping, huge pages, files without a name, NUMA nodes. Raw system calls where glibc wants
// _GNU_SOURCE, which the Swift importer does not define, and where the alternative is another library
// (libnuma).
#pragma once
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../base.h"

#define CI_PROT_NONE 0
#define CI_PROT_READ 1
#define CI_PROT_WRITE 2

#define CI_MAP_SHARED 0x01
#define CI_MAP_PRIVATE 0x02
#define CI_MAP_FIXED 0x10
#define CI_MAP_ANONYMOUS 0x20
#define CI_MAP_NORESERVE 0x4000
#define CI_MAP_POPULATE 0x8000
#define CI_MAP_HUGETLB 0x40000
#define CI_MAP_FIXED_NOREPLACE 0x100000
// With MAP_HUGETLB: log2 of the page size, from bit 26.
#define CI_MAP_HUGE_64KB (16 << 26)
#define CI_MAP_HUGE_2MB (21 << 26)
#define CI_MAP_HUGE_32MB (25 << 26)
#define CI_MAP_HUGE_512MB (29 << 26)
#define CI_MAP_HUGE_1GB (30 << 26)

#define CI_MADV_WILLNEED 3
#define CI_MADV_DONTNEED 4
#define CI_MADV_FREE 8
#define CI_MADV_REMOVE 9
#define CI_MADV_DONTFORK 10
#define CI_MADV_DOFORK 11
#define CI_MADV_HUGEPAGE 14
#define CI_MADV_NOHUGEPAGE 15
#define CI_MADV_DONTDUMP 16
#define CI_MADV_DODUMP 17
#define CI_MADV_WIPEONFORK 18
#define CI_MADV_KEEPONFORK 19
#define CI_MADV_POPULATE_READ 22
#define CI_MADV_POPULATE_WRITE 23
#define CI_MADV_COLLAPSE 25

#define CI_MFD_ALLOW_SEALING 2u
#define CI_MFD_HUGETLB 4u
#define CI_MFD_NOEXEC_SEAL 8u
#define CI_MFD_HUGE_64KB (16u << 26)
#define CI_MFD_HUGE_2MB (21u << 26)
#define CI_MFD_HUGE_32MB (25u << 26)
#define CI_MFD_HUGE_512MB (29u << 26)
#define CI_MFD_HUGE_1GB (30u << 26)

#define CI_F_SEAL_SEAL 1
#define CI_F_SEAL_SHRINK 2
#define CI_F_SEAL_GROW 4
#define CI_F_SEAL_WRITE 8

#define CI_FALLOC_FL_KEEP_SIZE 1
#define CI_FALLOC_FL_PUNCH_HOLE 2

#define CI_MPOL_DEFAULT 0
#define CI_MPOL_PREFERRED 1
#define CI_MPOL_BIND 2
#define CI_MPOL_INTERLEAVE 3
#define CI_MPOL_LOCAL 4
#define CI_MPOL_MF_STRICT 1u
#define CI_MPOL_MF_MOVE 2u

/// mmap(2): the address, which is never negative for a process, or -errno.
CI_SHIM int64_t ci_mmap(
    void *_Nullable address, uint64_t length, int32_t protection, int32_t flags, int fd, uint64_t offset) {
  void *result = mmap(address, length, protection, flags, fd, (off_t)offset);
  return result == MAP_FAILED ? -errno : (int64_t)(intptr_t)result;
}

/// munmap(2).
CI_SHIM int32_t ci_munmap(void *_Nonnull address, uint64_t length) {
  return ci_or_errno(munmap(address, length));
}

/// mprotect(2).
CI_SHIM int32_t ci_mprotect(void *_Nonnull address, uint64_t length, int32_t protection) {
  return ci_or_errno(mprotect(address, length, protection));
}

/// mincore(2) of one page: 1 where it is in memory, for the process or in the cache of its file; 0 where not. -ENOMEM: nothing is mapped.
CI_SHIM int32_t ci_is_resident(uint64_t page) {
  unsigned char state = 0;
  return mincore((void *)page, 1, &state) < 0 ? -errno : (state & 1);
}

/// process_vm_readv(2) of this process: the bytes that could be read of memory that may not be there, or -errno.
CI_SHIM int64_t ci_read_memory(void *_Nonnull target, uint64_t address, uint64_t length) {
  struct iovec to = {target, length}, from = {(void *)address, length};
  return ci_or_errno64(syscall(SYS_process_vm_readv, getpid(), &to, 1ul, &from, 1ul, 0ul));
}

/// mremap(2) to another address: MREMAP_MAYMOVE | MREMAP_FIXED.
CI_SHIM int32_t ci_mremap_fixed(void *_Nonnull address, uint64_t length, void *_Nonnull target) {
  return syscall(SYS_mremap, address, length, length, 3ul, target) < 0 ? -errno : 0;
}

/// madvise(2) with one of CI_MADV_….
CI_SHIM int32_t ci_madvise(void *_Nonnull address, uint64_t length, int32_t advice) {
  int result;
  CI_RETRY(result, madvise(address, length, advice));  // the populating ones may be interrupted
  return ci_or_errno(result);
}

/// memfd_create(2), closed on exec: memory with a descriptor. `flags` are CI_MFD_….
CI_SHIM int32_t ci_memfd_create(const char *_Nonnull name, uint32_t flags) {
  return (int32_t)ci_or_errno64(syscall(SYS_memfd_create, name, flags | 1u /* MFD_CLOEXEC */));
}

/// fcntl(F_ADD_SEALS): after F_SEAL_SHRINK no holder of the descriptor can cut memory from under a mapping.
CI_SHIM int32_t ci_add_seals(int fd, int32_t seals) { return ci_or_errno(fcntl(fd, 1024 + 9, seals)); }

/// fallocate(2): with PUNCH_HOLE | KEEP_SIZE gives memory back.
CI_SHIM int32_t ci_fallocate(int fd, int32_t mode, uint64_t offset, uint64_t length) {
  long result;
  CI_RETRY(result, syscall(SYS_fallocate, fd, mode, offset, length));
  return (int32_t)ci_or_errno64(result);
}

/// mbind(2): the policy of a range for the nodes whose bits are set in `words` words at `nodes`.
CI_SHIM int32_t ci_mbind(
    void *_Nonnull address, uint64_t length, int32_t mode, const uint64_t *_Nullable nodes, uint32_t words,
    uint32_t flags) {
  // The kernel reads one bit less than it is told.
  uint64_t bits = nodes == NULL ? 0 : (uint64_t)words * 64 + 1;
  return (int32_t)ci_or_errno64(syscall(SYS_mbind, address, length, (long)mode, nodes, bits, flags));
}

/// mbind(2) for one node below 1024.
CI_SHIM int32_t ci_mbind_node(
    void *_Nonnull address, uint64_t length, int32_t mode, uint32_t node, uint32_t flags) {
  uint64_t nodes[16] = {0};
  if (node >= sizeof nodes * 8) return -EINVAL;
  nodes[node / 64] = 1ull << (node % 64);
  return ci_mbind(address, length, mode, nodes, sizeof nodes / sizeof *nodes, flags);
}

/// move_pages(2) without moving: the node of each page, or -errno for it (-ENOENT: not there), into `status`.
CI_SHIM int32_t ci_page_nodes(
    uint64_t count, const void *_Nullable const *_Nonnull pages, int32_t *_Nonnull status) {
  return (int32_t)ci_or_errno64(syscall(SYS_move_pages, 0, count, pages, NULL, status, 0));
}

/// The node of one page, or -errno (-ENOENT: not there).
CI_SHIM int32_t ci_page_node(const void *_Nonnull address) {
  int32_t status = -ENOENT;
  int32_t result = ci_page_nodes(1, &address, &status);
  return result < 0 ? result : status;
}

/// get_mempolicy(2): the node of the page at `address`, which is brought in if it is not there.
CI_SHIM int32_t ci_page_node_populated(const void *_Nonnull address) {
  int node = -1;
  const unsigned long flags = 3;  // MPOL_F_NODE | MPOL_F_ADDR
  long result = syscall(SYS_get_mempolicy, &node, NULL, 0ul, address, flags);
  return result < 0 ? -errno : node;
}
