import IOMMU

/// Second mappings of memory files: a device writes to pages that it has pinned, whatever protection the process gave its own
/// mapping, and a simulated one is a part of the process.
struct MemoryAliases {
  private struct File {
    let byteCount: Int
    let descriptor: Int32, offset: UInt64
    /// Where the second mapping is; made with the first call that protects.
    var alias: UInt?
  }

  /// By the first address of the process's mapping.
  private var files: [UInt: File] = [:]
  /// How many have an alias.
  private var count = 0

  mutating func note(_ base: UInt, byteCount: Int, of file: (descriptor: Int32, offset: UInt64)) {
    files[base] = File(byteCount: byteCount, descriptor: file.descriptor, offset: file.offset)
  }

  /// Makes the alias of the mapping that has some memory. EACCES where none of a file has it.
  mutating func make(for address: UInt, byteCount: Int) throws(Errno) {
    guard let base = base(of: address), let file = files[base], Int(address - base) + byteCount <= file.byteCount else {
      throw .accessDenied
    }
    if file.alias != nil { return }
    files[base]!.alias = try HostSystem.map(
      byteCount: file.byteCount, descriptor: file.descriptor, offset: file.offset, isWritable: true)
    count += 1
  }

  func deviceSide(of address: UInt) -> UInt {
    guard count > 0, let base = base(of: address), let alias = files[base]?.alias else { return address }
    return alias + (address - base)
  }

  /// The process's mapping that begins at an address is gone.
  mutating func drop(_ base: UInt) {
    guard let file = files.removeValue(forKey: base), let alias = file.alias else { return }
    HostSystem.unmap(alias, byteCount: file.byteCount)
    count -= 1
  }

  private func base(of address: UInt) -> UInt? {
    files.first { address >= $0.key && address - $0.key < UInt($0.value.byteCount) }?.key
  }
}
