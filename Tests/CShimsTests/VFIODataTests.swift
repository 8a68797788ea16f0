import CIOMMU
import Glibc
import Testing

/// Bytes as a kernel would write them.
private struct Bytes {
  var bytes: [UInt8] = []
  mutating func append<T: FixedWidthInteger>(_ values: T...) {
    for value in values {
      for i in 0..<(T.bitWidth / 8) { bytes.append(UInt8(truncatingIfNeeded: value >> (8 * i))) }
    }
  }
  mutating func capability(id: UInt16, next: UInt32) {
    append(id, 1)
    append(next)
  }
  var count: UInt32 { UInt32(bytes.count) }
}

@Suite("What follows VFIO's structures")
struct VFIODataTests {
  /// A region info of 32 bytes, MSIX_MAPPABLE at 32, SPARSE_MMAP with two areas at 40.
  private static let region: Bytes = {
    var b = Bytes(bytes: [UInt8](repeating: 0, count: 32))
    b.capability(id: UInt16(CI_VFIO_REGION_INFO_CAP_MSIX_MAPPABLE), next: 40)
    b.capability(id: UInt16(CI_VFIO_REGION_INFO_CAP_SPARSE_MMAP), next: 0)
    b.append(2 as UInt32, 0)
    b.append(0x0 as UInt64, 0x1000, 0x3000, 0x2000)
    return b
  }()

  @Test func findsCapabilities() {
    let b = Self.region
    #expect(unsafe ci_vfio_capability(b.bytes, b.count, 32, 3) == 32)
    #expect(unsafe ci_vfio_capability(b.bytes, b.count, 32, 1) == 40)
    #expect(unsafe ci_vfio_capability(b.bytes, b.count, 32, 2) == -ENOENT)
    #expect(unsafe ci_vfio_capability(b.bytes, b.count, 0, 1) == -ENOENT)
  }

  @Test func sparseAreas() {
    let b = Self.region
    var area = ci_vfio_region_sparse_mmap_area()
    #expect(unsafe ci_vfio_sparse_mmap_count(b.bytes, b.count, 40) == 2)
    #expect(unsafe ci_vfio_sparse_mmap_area(b.bytes, b.count, 40, 1, &area) == 0)
    #expect(area.offset == 0x3000 && area.size == 0x2000)
    // A count that is larger than what is there does not lead outside.
    #expect(unsafe ci_vfio_sparse_mmap_area(b.bytes, b.count, 40, 2, &area) == -ERANGE)
    #expect(unsafe ci_vfio_sparse_mmap_area(b.bytes, b.count, 40, .max, &area) == -ERANGE)
    #expect(unsafe ci_vfio_sparse_mmap_count(b.bytes, 48, 40) == -ERANGE)
  }

  @Test func iovaRanges() {
    var b = Bytes(bytes: [UInt8](repeating: 0, count: 24))
    b.capability(id: UInt16(CI_VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE), next: 0)
    b.append(1 as UInt32, 0)
    b.append(0x1000 as UInt64, 0xfedf_ffff)
    var range = ci_vfio_iova_range()
    #expect(unsafe ci_vfio_capability(b.bytes, b.count, 24, 1) == 24)
    #expect(unsafe ci_vfio_iova_range_count(b.bytes, b.count, 24) == 1)
    #expect(unsafe ci_vfio_iova_range_at(b.bytes, b.count, 24, 0, &range) == 0)
    #expect(range.start == 0x1000 && range.end == 0xfedf_ffff)
  }

  @Test("A chain that loops or leaves the buffer ends with EPROTO")
  func brokenChains() {
    var loop = Bytes(bytes: [UInt8](repeating: 0, count: 24))
    loop.capability(id: 7, next: 24)
    #expect(unsafe ci_vfio_capability(loop.bytes, loop.count, 24, 1) == -EPROTO)
    var outside = Bytes(bytes: [UInt8](repeating: 0, count: 24))
    outside.capability(id: 7, next: 0xffff_fff8)
    #expect(unsafe ci_vfio_capability(outside.bytes, outside.count, 24, 1) == -EPROTO)
    #expect(unsafe ci_vfio_capability(outside.bytes, outside.count, 28, 1) == -EPROTO)
  }

  @Test func hotResetDevices() {
    var b = Bytes()
    b.append(28 as UInt32, 0, 2)
    for device in 0..<2 as Range<UInt8> {
      b.append(UInt32(device) + 5)
      b.append(1 as UInt16)
      b.append(3 as UInt8, device)
    }
    var out = ci_vfio_pci_dependent_device()
    unsafe b.bytes.withUnsafeBytes {
      let info = unsafe $0.baseAddress!.assumingMemoryBound(to: ci_vfio_pci_hot_reset_info.self)
      #expect(unsafe ci_vfio_pci_hot_reset_device(info, b.count, 1, &out) == 0)
      #expect(out.devid == 6 && out.segment == 1 && out.bus == 3 && out.devfn == 1)
      #expect(unsafe ci_vfio_pci_hot_reset_device(info, b.count, 2, &out) == -ERANGE)
      #expect(unsafe ci_vfio_pci_hot_reset_device(info, b.count - 1, 1, &out) == -ERANGE)
    }
  }

  @Test("Many interrupts need the caller's buffer, which then holds the kernel's argument")
  func irqScratch() {
    let count = CI_VFIO_IRQ_INLINE + 1
    let descriptors = (0..<Int32(count)).map { $0 }
    let trigger = CI_VFIO_IRQ_SET_ACTION_TRIGGER
    #expect(unsafe ci_vfio_device_set_irqs_eventfd(-1, trigger, 2, 1, count, descriptors, nil, 0) == -ENOBUFS)
    let size = ci_vfio_irq_set_size(count, 4)
    #expect(size == 20 + 4 * UInt64(count))
    var scratch = [UInt32](repeating: 0, count: Int(size / 4))
    let short = unsafe ci_vfio_device_set_irqs_eventfd(
      -1, trigger, 2, 1, count, descriptors, &scratch, UInt32(size) - 1)
    #expect(short == -ENOBUFS)
    let issued = unsafe ci_vfio_device_set_irqs_eventfd(
      -1, trigger, 2, 1, count, descriptors, &scratch, UInt32(size))
    #expect(issued == -EBADF)
    #expect(scratch[..<5] == [UInt32(size), CI_VFIO_IRQ_SET_DATA_EVENTFD | trigger, 2, 1, count])
    #expect(scratch[5...].elementsEqual((0..<count)))
  }

  @Test("What does not fit on the stack is refused, not cut")
  func limits() {
    let groups = [Int32](repeating: 0, count: Int(CI_VFIO_HOT_RESET_GROUPS) + 1)
    #expect(unsafe ci_vfio_device_pci_hot_reset(-1, groups, UInt32(groups.count)) == -E2BIG)
    #expect(unsafe ci_vfio_device_pci_hot_reset(-1, groups, CI_VFIO_HOT_RESET_GROUPS) == -EBADF)
    #expect(ci_vfio_device_pci_hot_reset(-1, nil, 1) == -EINVAL)
    var data = [UInt8](repeating: 7, count: Int(CI_VFIO_FEATURE_INLINE) + 1)
    #expect(unsafe ci_vfio_device_feature(-1, 0, &data, UInt32(data.count)) == -E2BIG)
    #expect(unsafe ci_vfio_device_feature(-1, 0, &data, CI_VFIO_FEATURE_INLINE) == -EBADF)
    #expect(data.allSatisfy { $0 == 7 })
  }
}
