import AddressSpace

// What tables of the process stand on, whatever their format: a page table that others are nested over, and memory for tables in its
// address space.

extension IOMMUFDDescriptor {
  /// Makes a nest parent for a device, and with it something that stands on it. When that fails, the address space is empty again
  /// and the parent gone, as far as the kernel will.
  ///
  /// - Parameter unsupported: What EOPNOTSUPP means here.
  func withNestParent<Value>(
    _ device: UInt32, unsupported: String? = nil, _ body: (UInt32) throws(NestingRefusal) -> Value
  ) throws(NestingRefusal) -> Value {
    let parent: UInt32
    do throws(Errno) {
      parent = try kernel.hwptAllocate(iommufd, flags: HWPTFlags.nestParent, device: device, pageTable: ioas)
    } catch { throw NestingRefusal("IOMMU_HWPT_ALLOC", error, error == .notSupported ? unsupported : nil) }
    do throws(NestingRefusal) { return try body(parent) } catch {
      var refusal = error
      do throws(Errno) {
        _ = try kernel.ioasUnmap(iommufd, ioas: ioas, iova: 0, byteCount: .max)
        try kernel.iommufdDestroy(iommufd, id: parent)
      } catch {
        // The address space has memory of tables still: no device may be attached to it.
        refusal.isFinal = true
      }
      throw refusal
    }
  }
}

extension PinnedTables {
  /// Memory for tables among the IPAs that the kernel offers over a nest parent, and the highest of these that an entry can lead to.
  ///
  /// - Parameter granule: The size of tables that suits a smallest page of stage 2; nil for none.
  static func make(
    _ descriptor: IOMMUFDDescriptor, _ stage2: Stage2, granule: (_ page: UInt64) -> PageSize?
  ) throws(NestingRefusal) -> (tables: PinnedTables, last: UInt64) {
    do throws(Errno) {
      let ranges = try descriptor.kernel.ioasRanges(descriptor.iommufd, ioas: descriptor.ioas)
      try stage2.limitSpace()
      guard let end = ranges.ranges.map(\.last.rawValue).max(), let granule = granule(ranges.alignment) else {
        throw .notSupported
      }
      let last = min(end, Stage2.reachable.last.rawValue)
      let reserved = min(Limits.tables, Int(clamping: last / 8) & ~(Limits.tablePiece - 1))
      return (try PinnedTables(descriptor, stage2.memory, granule: granule, byteCount: reserved), last)
    } catch { throw NestingRefusal("Memory for page tables", error) }
  }
}
