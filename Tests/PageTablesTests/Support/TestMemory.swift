import AddressSpace

/// Memory for tables, all zero. It goes with the last pool that it was made for.
@safe
final class TestMemory: @unchecked Sendable {
  let base: UnsafeMutableRawPointer
  let byteCount: UInt64

  init(_ granule: PageSize, tables: Int) {
    byteCount = UInt64(tables) * granule.byteCount
    unsafe base = .allocate(byteCount: Int(byteCount), alignment: Int(granule.byteCount))
    unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: Int(byteCount))
  }

  deinit { unsafe base.deallocate() }
}
