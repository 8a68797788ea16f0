// One function for each ioctl of /dev/iommu. Each fills in its argument's `size` and returns 0 or -errno.
// The kernel's errno contract: ENOTTY unknown request, E2BIG unknown tail that is not 0, EOPNOTSUPP known
// field with an unknown value, EINVAL wrong value, ENOENT no such object or IOVA, EOVERFLOW arithmetic.
#pragma once
#include "iommufd_types.h"

/// IOMMU_DESTROY: destroys an object by its id; -EBUSY while another object uses it.
CI_SHIM int32_t ci_iommu_destroy(int fd, uint32_t id) {
  struct ci_iommu_destroy argument = {.size = sizeof argument, .id = id};
  return ci_ioctl(fd, CI_IOMMU_DESTROY, &argument);
}

/// IOMMU_IOAS_ALLOC: makes an empty I/O address space.
CI_SHIM int32_t ci_iommu_ioas_alloc(int fd, struct ci_iommu_ioas_alloc *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_IOAS_ALLOC, argument);
}

/// IOMMU_IOAS_ALLOW_IOVAS: the only ranges where the kernel may choose; attaching may not narrow them.
CI_SHIM int32_t ci_iommu_ioas_allow_iovas(int fd, struct ci_iommu_ioas_allow_iovas *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_IOAS_ALLOW_IOVAS, argument);
}

/// IOMMU_IOAS_COPY: maps in one address space what is mapped in another, without pinning again.
CI_SHIM int32_t ci_iommu_ioas_copy(int fd, struct ci_iommu_ioas_copy *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_IOAS_COPY, argument);
}

/// IOMMU_IOAS_IOVA_RANGES: the usable ranges; -EMSGSIZE leaves the number needed in `num_iovas`.
CI_SHIM int32_t ci_iommu_ioas_iova_ranges(int fd, struct ci_iommu_ioas_iova_ranges *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_IOAS_IOVA_RANGES, argument);
}

/// IOMMU_IOAS_MAP: pins user memory and maps it; `iova` is chosen by the kernel unless FIXED_IOVA.
CI_SHIM int32_t ci_iommu_ioas_map(int fd, struct ci_iommu_ioas_map *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_IOAS_MAP, argument);
}

/// IOMMU_IOAS_MAP_FILE: the same by file and offset; a memfd of huge pages is pinned by folio.
CI_SHIM int32_t ci_iommu_ioas_map_file(int fd, struct ci_iommu_ioas_map_file *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_IOAS_MAP_FILE, argument);
}

/// IOMMU_IOAS_UNMAP: unmaps whole areas; `length` comes back as the bytes unmapped.
CI_SHIM int32_t ci_iommu_ioas_unmap(int fd, struct ci_iommu_ioas_unmap *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_IOAS_UNMAP, argument);
}

/// IOMMU_IOAS_CHANGE_PROCESS: moves the accounting of file maps to the calling process.
CI_SHIM int32_t ci_iommu_ioas_change_process(int fd) {
  struct ci_iommu_ioas_change_process argument = {.size = sizeof argument};
  return ci_ioctl(fd, CI_IOMMU_IOAS_CHANGE_PROCESS, &argument);
}

/// IOMMU_OPTION: sets or gets RLIMIT_MODE or HUGE_PAGES.
CI_SHIM int32_t ci_iommu_option(int fd, struct ci_iommu_option *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_OPTION, argument);
}

/// IOMMU_VFIO_IOAS: which address space the VFIO container interface of this descriptor uses.
CI_SHIM int32_t ci_iommu_vfio_ioas(int fd, struct ci_iommu_vfio_ioas *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_VFIO_IOAS, argument);
}

/// IOMMU_HWPT_ALLOC: a page table of the hardware: over an IOAS, or a stage 1 nested on one.
CI_SHIM int32_t ci_iommu_hwpt_alloc(int fd, struct ci_iommu_hwpt_alloc *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_HWPT_ALLOC, argument);
}

/// IOMMU_GET_HW_INFO: the registers of the IOMMU in front of a bound device.
CI_SHIM int32_t ci_iommu_get_hw_info(int fd, struct ci_iommu_hw_info *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_GET_HW_INFO, argument);
}

/// IOMMU_HWPT_SET_DIRTY_TRACKING: starts or stops tracking of device writes.
CI_SHIM int32_t ci_iommu_hwpt_set_dirty_tracking(
    int fd, struct ci_iommu_hwpt_set_dirty_tracking *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_HWPT_SET_DIRTY_TRACKING, argument);
}

/// IOMMU_HWPT_GET_DIRTY_BITMAP: the pages that the device wrote, and (unless NO_CLEAR) forgets them.
CI_SHIM int32_t ci_iommu_hwpt_get_dirty_bitmap(
    int fd, struct ci_iommu_hwpt_get_dirty_bitmap *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_HWPT_GET_DIRTY_BITMAP, argument);
}

/// IOMMU_HWPT_INVALIDATE: `entry_num` comes back as the number handled, after an error too.
CI_SHIM int32_t ci_iommu_hwpt_invalidate(int fd, struct ci_iommu_hwpt_invalidate *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_HWPT_INVALIDATE, argument);
}

/// IOMMU_FAULT_QUEUE_ALLOC: a queue of page requests, read and answered through its own descriptor.
CI_SHIM int32_t ci_iommu_fault_queue_alloc(int fd, struct ci_iommu_fault_alloc *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_FAULT_QUEUE_ALLOC, argument);
}

/// IOMMU_VIOMMU_ALLOC: a slice of a physical IOMMU over a nest parent.
CI_SHIM int32_t ci_iommu_viommu_alloc(int fd, struct ci_iommu_viommu_alloc *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_VIOMMU_ALLOC, argument);
}

/// IOMMU_VDEVICE_ALLOC: the number (stream id) by which a vIOMMU's commands name a device.
CI_SHIM int32_t ci_iommu_vdevice_alloc(int fd, struct ci_iommu_vdevice_alloc *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_VDEVICE_ALLOC, argument);
}

/// IOMMU_VEVENTQ_ALLOC: the hardware's event records of one type for a vIOMMU.
CI_SHIM int32_t ci_iommu_veventq_alloc(int fd, struct ci_iommu_veventq_alloc *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_VEVENTQ_ALLOC, argument);
}

/// IOMMU_HW_QUEUE_ALLOC: a command queue of the hardware that the process fills itself.
CI_SHIM int32_t ci_iommu_hw_queue_alloc(int fd, struct ci_iommu_hw_queue_alloc *_Nonnull argument) {
  argument->size = sizeof *argument;
  return ci_ioctl(fd, CI_IOMMU_HW_QUEUE_ALLOC, argument);
}
