import AddressSpace
import Testing

/// The reader that the other tests rely on, handed words that no writer wrote; Tests/Soak has it read any.
@Suite struct ReaderTests {
  private let memory = TestMemory(.fourKiB, tables: 4)
  private var reader: TableReader {
    TableReader(levels: ArmReader.levels(granule: 4096, inputBits: 48), memory: memory, address: 0x1000)
  }

  private func write(_ word: UInt64, at index: Int) {
    unsafe memory.base.storeBytes(of: word, toByteOffset: index * 8, as: UInt64.self)
  }

  /// A table all of whose entries lead to itself: following them all would take 512⁴ steps.
  @Test(.timeLimit(.minutes(1))) func aTableThatLeadsToItself() {
    for index in 0..<512 { write(0x1003, at: index) }
    #expect(throws: TableReader.Failure.self) { try reader.contents(root: 0x1000) }
    // A walk reads it once a level, the last time as a page whose attributes are no page's.
    #expect(throws: TableReader.Failure.self) { try reader.walk(0x1234_5000, root: 0x1000) }
  }

  /// One that lies outside of the memory.
  @Test func aTableThatIsNowhere() {
    for address in [0, 0x5000, 0xffff_ffff_f000] as [UInt64] {
      write(address | 3, at: 0)
      #expect(throws: TableReader.Failure.self) { try reader.contents(root: 0x1000) }
      #expect(throws: TableReader.Failure.self) { try reader.walk(0, root: 0x1000) }
    }
  }
}
