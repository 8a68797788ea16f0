import AddressSpace
import IOMMU
import Testing

/// The flat stage 1: what is written, what a walk finds, what is cleared.
@Suite struct FlatTableTests {
  private func range(_ start: UInt64, _ byteCount: UInt64) -> IOVARange {
    IOVARange(start: IOVA(start), byteCount: byteCount)!
  }

  @Test func walks() throws {
    let table = try FlatTable(granule: .fourKiB)
    let entry = FlatTable.Entry(
      iova: 0x10_0000, byteCount: 0x3000, ipa: 0x7_0000_1000, access: .write, ownsMemory: true)
    #expect(table.insert(entry))
    for iova in [0x10_0000, 0x10_2fff] as [UInt64] { #expect(table.entry(at: iova) == entry) }
    for iova in [0xf_ffff, 0x10_3000] as [UInt64] { #expect(table.entry(at: iova) == nil) }
    for access in [DMAAccess.read, .write, .readWrite] {
      let other = FlatTable.Entry(
        iova: 0x20_0000 + UInt64(access.rawValue) << 12, byteCount: 4096, ipa: 0, access: access)
      #expect(table.insert(other))
      #expect(table.entry(at: other.iova) == other)
    }
    #expect(table.count == 4)
  }

  @Test func refusesWhatIsInTheWay() throws {
    let table = try FlatTable(granule: .fourKiB)
    #expect(table.insert(.init(iova: 0x1000, byteCount: 0x2000, ipa: 0x1000, access: .read)))
    #expect(!table.insert(.init(iova: 0x2000, byteCount: 0x1000, ipa: 0x9000, access: .read)))
    #expect(!table.insert(.init(iova: 0x5800, byteCount: 0x1000, ipa: 0x9000, access: .read)), "not on a page")
    #expect(table.entry(at: 0x2000)?.ipa == 0x1000)
  }

  @Test func clearsWholeEntries() throws {
    let table = try FlatTable(granule: .fourKiB)
    let entries = [0x1000, 0x3000, 0x8000].map {
      FlatTable.Entry(iova: $0, byteCount: 0x2000, ipa: $0 << 8, access: .readWrite)
    }
    for entry in entries { #expect(table.insert(entry)) }
    #expect(try table.removeFirst(in: range(0, 0x5000)) == entries[0])
    #expect(try table.removeFirst(in: range(0, 0x5000)) == entries[1])
    #expect(try table.removeFirst(in: range(0, 0x5000)) == nil)
    #expect(throws: Errno.noEntry) { try table.removeFirst(in: range(0x9000, 0x1000)) }
    #expect(table.entry(at: 0x9000) == entries[2])
  }

  @Test func isNamedByItsAddress() throws {
    let table = try FlatTable(granule: .fourKiB)
    let data = FlatFormat.data(table)
    #expect(data.type == FlatFormat.dataType && data.bytes.count == 8)
    #expect(try FlatFormat.table(data.bytes) === table)
    #expect(throws: Errno.invalidArgument) { try FlatFormat.table([1, 2, 3]) }
    #expect(throws: Errno.invalidArgument) { try FlatFormat.table([UInt8](repeating: 0, count: 8)) }
    #expect(MemoryLayout<FlatFormat.Command>.size == 24)
  }
}
