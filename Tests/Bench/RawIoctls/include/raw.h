// What a C program does without this library: the same ioctls on an address that it chose once, and nothing else.
#pragma once
#include <stdint.h>

/// An open device with an empty address space.
struct raw_device {
  int device, space, group;
  uint32_t ioas;
};

/// Opens a device by its node and /dev/iommu, and attaches it to an IOAS; 0 or -errno.
int raw_open_iommufd(struct raw_device *_Nonnull raw, const char *_Nonnull node);

/// Opens a device by its group and a type1 container; 0 or -errno.
int raw_open_type1(struct raw_device *_Nonnull raw, const char *_Nonnull group, const char *_Nonnull address);

/// Maps `length` bytes at `memory` for reading and writing and unmaps them, `count` times over; 0 or -errno.
int raw_pairs_iommufd(const struct raw_device *_Nonnull raw, uint64_t memory, uint64_t length, int count);
int raw_pairs_type1(const struct raw_device *_Nonnull raw, uint64_t memory, uint64_t length, int count);

void raw_close(const struct raw_device *_Nonnull raw);

/// Runs the kernel's own benchmark for a second: one thread maps and unmaps a page for both directions by its DMA API, for the
/// device that is bound to it. The averages in nanoseconds, in steps of 100; 0 or -errno.
///
/// The source is `include/uapi/linux/map_benchmark.h`.
int raw_kernel_pairs(const char *_Nonnull file, double *_Nonnull map, double *_Nonnull unmap);

/// What malloc has given out to this process, in bytes.
long raw_heap_bytes(void);
