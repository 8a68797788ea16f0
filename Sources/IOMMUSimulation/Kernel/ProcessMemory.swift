import IOMMU

/// The memory mappings and descriptors that a process made through the kernel, counted, and kept while pinned.
///
/// A real kernel keeps the pages of a pin after the process unmapped them. Here the mapping itself is kept until the
/// last pin goes, so that a device model never writes into memory that is not there.
struct ProcessMemory {
  private struct Region { let base: UInt, byteCount: Int }

  private(set) var mappings: [UInt: Int] = [:]
  /// Mappings of memory files that have a second one, for devices.
  private var aliases = MemoryAliases()
  private var pins = AreaPins()
  private var waiting: [Region] = []
  /// Memory files made through the kernel, with the size of their pages in bytes.
  var files: [Int32: UInt64] = [:]
  var events: Set<Int32> = []

  var mappingCount: Int { mappings.count }

  mutating func add(_ base: UInt, byteCount: Int, of file: (descriptor: Int32, offset: UInt64)? = nil) {
    mappings[base] = byteCount
    if let file { aliases.note(base, byteCount: byteCount, of: file) }
  }

  /// Makes sure that devices reach memory whatever the process may do with it.
  mutating func makeAlias(for address: UInt, byteCount: Int) throws(Errno) {
    try aliases.make(for: address, byteCount: byteCount)
  }

  /// Where devices reach what the process has at an address.
  func deviceSide(of address: UInt) -> UInt { aliases.deviceSide(of: address) }

  /// Forgets a mapping, whole or in part, and unmaps it now or once it is no longer pinned.
  mutating func remove(_ base: UInt, byteCount: Int) {
    forget(base, byteCount: byteCount)
    let region = Region(base: base, byteCount: byteCount)
    if pins.touches(base, byteCount: byteCount) {
      waiting.append(region)
    } else {
      unmap(region)
    }
  }

  private mutating func unmap(_ region: Region) {
    HostSystem.unmap(region.base, byteCount: region.byteCount)
    aliases.drop(region.base)
  }

  private mutating func forget(_ base: UInt, byteCount: Int) {
    let end = base + UInt(byteCount)
    for (start, length) in mappings where start < end && base < start + UInt(length) {
      mappings[start] = nil
      if start < base { mappings[start] = Int(base - start) }
      if start + UInt(length) > end { mappings[end] = Int(start + UInt(length) - end) }
    }
  }

  mutating func pin(_ memory: PinnedMemory) { pins.add(memory.address, byteCount: Int(memory.byteCount)) }

  mutating func unpin(_ memory: PinnedMemory) {
    pins.remove(memory.address, byteCount: Int(memory.byteCount))
    guard !waiting.isEmpty else { return }
    for region in waiting where !pins.touches(region.base, byteCount: region.byteCount) { unmap(region) }
    waiting.removeAll { !pins.touches($0.base, byteCount: $0.byteCount) }
  }
}

/// Counted ranges of host memory that are pinned; they may overlap.
private struct AreaPins {
  private struct Range: Hashable { let start: UInt, byteCount: Int }
  private var counts: [Range: Int] = [:]

  mutating func add(_ start: UInt, byteCount: Int) {
    counts[Range(start: start, byteCount: byteCount), default: 0] += 1
  }

  mutating func remove(_ start: UInt, byteCount: Int) {
    let range = Range(start: start, byteCount: byteCount)
    guard let count = counts[range] else { return }
    counts[range] = count == 1 ? nil : count - 1
  }

  func touches(_ start: UInt, byteCount: Int) -> Bool {
    counts.keys.contains { $0.start < start + UInt(byteCount) && start < $0.start + UInt($0.byteCount) }
  }
}
