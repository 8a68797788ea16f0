import CIOMMU
import Glibc
import Testing

/// An ioctl function of the shim, with an argument of zeros.
struct Request: Sendable, CustomTestStringConvertible {
  let name: String
  let call: @Sendable (Int32) -> Int32
  var testDescription: String { name }

  init(_ name: String, _ call: @escaping @Sendable (Int32) -> Int32) {
    self.name = name
    self.call = call
  }

  /// Most functions take a pointer to one structure …
  init<T>(_ name: String, _ call: @escaping @Sendable (Int32, UnsafeMutablePointer<T>) -> Int32) {
    self.init(name) { fd in unsafe withZeros(T.self) { unsafe call(fd, $0) } }
  }

  /// … and some its capacity.
  init<T>(_ name: String, _ call: @escaping @Sendable (Int32, UnsafeMutablePointer<T>, UInt32) -> Int32) {
    self.init(name) { fd in unsafe withZeros(T.self) { unsafe call(fd, $0, UInt32(MemoryLayout<T>.size)) } }
  }
}

func withZeros<T, R>(_ type: T.Type, _ body: (UnsafeMutablePointer<T>) -> R) -> R {
  unsafe withUnsafeTemporaryAllocation(of: T.self, capacity: 1) { memory in
    unsafe UnsafeMutableRawBufferPointer(memory).initializeMemory(as: UInt8.self, repeating: 0)
    return unsafe body(memory.baseAddress!)
  }
}

@Suite("Errors are -errno")
struct ErrnoTests {
  static let iommufd: [Request] = unsafe [
    Request("ci_iommu_destroy") { ci_iommu_destroy($0, 1) },
    Request("ci_iommu_ioas_alloc", ci_iommu_ioas_alloc),
    Request("ci_iommu_ioas_allow_iovas", ci_iommu_ioas_allow_iovas),
    Request("ci_iommu_ioas_copy", ci_iommu_ioas_copy),
    Request("ci_iommu_ioas_iova_ranges", ci_iommu_ioas_iova_ranges),
    Request("ci_iommu_ioas_map", ci_iommu_ioas_map),
    Request("ci_iommu_ioas_map_file", ci_iommu_ioas_map_file),
    Request("ci_iommu_ioas_unmap", ci_iommu_ioas_unmap),
    Request("ci_iommu_ioas_change_process") { ci_iommu_ioas_change_process($0) },
    Request("ci_iommu_option", ci_iommu_option),
    Request("ci_iommu_vfio_ioas", ci_iommu_vfio_ioas),
    Request("ci_iommu_hwpt_alloc", ci_iommu_hwpt_alloc),
    Request("ci_iommu_get_hw_info", ci_iommu_get_hw_info),
    Request("ci_iommu_hwpt_set_dirty_tracking", ci_iommu_hwpt_set_dirty_tracking),
    Request("ci_iommu_hwpt_get_dirty_bitmap", ci_iommu_hwpt_get_dirty_bitmap),
    Request("ci_iommu_hwpt_invalidate", ci_iommu_hwpt_invalidate),
    Request("ci_iommu_fault_queue_alloc", ci_iommu_fault_queue_alloc),
    Request("ci_iommu_viommu_alloc", ci_iommu_viommu_alloc),
    Request("ci_iommu_vdevice_alloc", ci_iommu_vdevice_alloc),
    Request("ci_iommu_veventq_alloc", ci_iommu_veventq_alloc),
    Request("ci_iommu_hw_queue_alloc", ci_iommu_hw_queue_alloc),
  ]

  static let vfio: [Request] = unsafe [
    Request("ci_vfio_get_api_version") { ci_vfio_get_api_version($0) },
    Request("ci_vfio_check_extension") { ci_vfio_check_extension($0, CI_VFIO_TYPE1v2_IOMMU) },
    Request("ci_vfio_set_iommu") { ci_vfio_set_iommu($0, CI_VFIO_TYPE1v2_IOMMU) },
    Request("ci_vfio_iommu_get_info", ci_vfio_iommu_get_info),
    Request("ci_vfio_iommu_map_dma", ci_vfio_iommu_map_dma),
    Request("ci_vfio_iommu_unmap_dma", ci_vfio_iommu_unmap_dma),
    Request("ci_vfio_iommu_unmap_dma_bitmap") { fd in
      var unmap = ci_vfio_iommu_type1_dma_unmap()
      return unsafe ci_vfio_iommu_unmap_dma_bitmap(fd, &unmap, ci_vfio_bitmap())
    },
    Request("ci_vfio_iommu_dirty_pages") {
      ci_vfio_iommu_dirty_pages($0, CI_VFIO_IOMMU_DIRTY_PAGES_FLAG_START)
    },
    Request("ci_vfio_iommu_dirty_pages_get_bitmap") { fd in
      unsafe ci_vfio_iommu_dirty_pages_get_bitmap(fd, ci_vfio_iommu_type1_dirty_bitmap_get())
    },
    Request("ci_vfio_group_get_status", ci_vfio_group_get_status),
    Request("ci_vfio_group_set_container") { ci_vfio_group_set_container($0, 0) },
    Request("ci_vfio_group_unset_container") { ci_vfio_group_unset_container($0) },
    Request("ci_vfio_group_get_device_fd") { unsafe ci_vfio_group_get_device_fd($0, "0000:00:00.0") },
    Request("ci_vfio_device_bind_iommufd", ci_vfio_device_bind_iommufd),
    Request("ci_vfio_device_attach_iommufd_pt", ci_vfio_device_attach_iommufd_pt),
    Request("ci_vfio_device_detach_iommufd_pt", ci_vfio_device_detach_iommufd_pt),
    Request("ci_vfio_device_get_info", ci_vfio_device_get_info),
    Request("ci_vfio_device_get_region_info", ci_vfio_device_get_region_info),
    Request("ci_vfio_device_get_irq_info", ci_vfio_device_get_irq_info),
    Request("ci_vfio_device_set_irqs_none") {
      ci_vfio_device_set_irqs_none($0, CI_VFIO_IRQ_SET_ACTION_TRIGGER, CI_VFIO_PCI_MSI_IRQ_INDEX, 0, 0)
    },
    Request("ci_vfio_device_set_irqs_bool") { fd in
      unsafe ci_vfio_device_set_irqs_bool(fd, CI_VFIO_IRQ_SET_ACTION_MASK, 0, 0, 1, [1], nil, 0)
    },
    Request("ci_vfio_device_set_irqs_eventfd") { fd in
      unsafe ci_vfio_device_set_irqs_eventfd(fd, CI_VFIO_IRQ_SET_ACTION_TRIGGER, 1, 0, 1, [-1], nil, 0)
    },
    Request("ci_vfio_device_set_irqs", ci_vfio_device_set_irqs),
    Request("ci_vfio_device_reset") { ci_vfio_device_reset($0) },
    Request("ci_vfio_device_get_pci_hot_reset_info", ci_vfio_device_get_pci_hot_reset_info),
    Request("ci_vfio_device_pci_hot_reset") { ci_vfio_device_pci_hot_reset($0, nil, 0) },
    Request("ci_vfio_device_ioeventfd", ci_vfio_device_ioeventfd),
    Request("ci_vfio_device_feature") { ci_vfio_device_feature($0, CI_VFIO_DEVICE_FEATURE_PROBE, nil, 0) },
    Request("ci_vfio_device_feature_sized", ci_vfio_device_feature_sized),
    Request("ci_vfio_device_get_dma_buf") { ci_vfio_device_get_dma_buf($0, 0, 0, 0, 4096) },
    Request("ci_vfio_mig_get_precopy_info", ci_vfio_mig_get_precopy_info),
  ]

  @Test("No descriptor: EBADF", arguments: iommufd + vfio)
  func badDescriptor(_ request: Request) { #expect(request.call(-1) == -EBADF) }

  @Test("Not a driver's descriptor: ENOTTY", arguments: iommufd + vfio)
  func notADriver(_ request: Request) throws {
    let file = try Descriptor.memory()
    #expect(request.call(file.number) == -ENOTTY)
  }

  @Test("Every ioctl function of the headers is in the tables", arguments: ["iommufd", "vfio"])
  func complete(_ header: String) throws {
    // "CI_SHIM int32_t ci_NAME(" followed by the descriptor; vfio_data.h holds what is no ioctl of its own.
    let text = try shimHeader("\(header).h")
    let declared = text.split(separator: "\n").filter { $0.hasPrefix("CI_SHIM ") }.compactMap { line in
      line.split(whereSeparator: { " (".utf8.contains($0.utf8.first!) }).first { $0.hasPrefix("ci_") }.map(
        String.init)
    }
    let tested = (header == "vfio" ? Self.vfio : Self.iommufd).map(\.name)
    #expect(declared.sorted() == tested.sorted())
  }

  @Test("A failed call reports its own errno, not one that was there before")
  func ownErrno() throws {
    errno = EPERM
    #expect(ci_close(-1) == -EBADF)
    unsafe #expect(ci_open("/nonexistent", CI_O_RDONLY, 0) == -ENOENT)
    let file = try Descriptor.memory()
    #expect(ci_dup(file.number) >= 0)
  }
}

/// A header of the shim as text.
func shimHeader(_ name: String, test: String = #filePath) throws -> String {
  let root = test.split(separator: "/").dropLast(3).joined(separator: "/")
  let file = try unsafe Descriptor(ci_open("/\(root)/CShims/include/\(name)", CI_O_RDONLY, 0))
  return try contents(of: file)
}

/// All of a file that fits in 1 MiB.
func contents(of file: borrowing Descriptor) throws -> String {
  let fd = file.number
  let bytes = unsafe [UInt8](unsafeUninitializedCapacity: 1 << 20) { buffer, count in
    count = Int(max(0, unsafe ci_pread_full(fd, buffer.baseAddress!, UInt64(buffer.count), 0)))
  }
  return String(decoding: bytes, as: UTF8.self)
}
