import AddressSpaceModels
import IOMMU
import Testing

@Suite("Capabilities")
struct CapabilitiesTests {
  /// Puts a standard list of (id, offset) into config space.
  static func list(_ entries: [(UInt8, UInt8)]) -> (inout TestKernel.State) -> Void {
    { state in
      state.config(6, 0x10, 0)
      state.config(0x34, entries.first?.1 ?? 0)
      for (index, (id, offset)) in entries.enumerated() {
        let next = index + 1 < entries.count ? entries[index + 1].1 : 0
        state.config(Int(offset), id, next)
      }
    }
  }

  static func extended(_ entries: [(id: UInt16, offset: Int)]) -> (inout TestKernel.State) -> Void {
    { state in
      for (index, entry) in entries.enumerated() {
        let next = index + 1 < entries.count ? entries[index + 1].offset : 0
        let header = UInt32(entry.id) | 1 << 16 | UInt32(next) << 20
        state.config(
          entry.offset, UInt8(truncatingIfNeeded: header), UInt8(truncatingIfNeeded: header >> 8),
          UInt8(truncatingIfNeeded: header >> 16), UInt8(truncatingIfNeeded: header >> 24))
      }
    }
  }

  private func found(_ change: (inout TestKernel.State) -> Void) throws -> [[Int]] {
    try ConfigSpaceTests.kernel(4096, change).config().capabilities().map { [Int($0.id), $0.offset] }
  }

  @Test func theListIsReadInItsOrder() throws {
    #expect(
      try found(Self.list([(1, 0x40), (5, 0x50), (0x10, 0x80), (0x11, 0x70)])) == [
        [1, 0x40], [5, 0x50], [0x10, 0x80], [0x11, 0x70],
      ])
  }

  @Test func withoutTheStatusBitThereIsNone() throws {
    #expect(
      try found { state in
        Self.list([(1, 0x40)])(&state)
        state.config(6, 0, 0)
      }.isEmpty)
  }

  @Test func anEmptyListIsEmpty() throws { #expect(try found(Self.list([])).isEmpty) }

  @Test func theLowBitsOfAPointerAreIgnored() throws {
    #expect(
      try found { state in
        Self.list([(1, 0x40), (5, 0x50)])(&state)
        state.config(0x34, 0x43)
        state.config(0x41, 0x52)
      } == [[1, 0x40], [5, 0x50]])
  }

  @Test func aCircleEnds() throws {
    #expect(
      try found { state in
        Self.list([(1, 0x40), (5, 0x50)])(&state)
        state.config(0x51, 0x40)
      } == [[1, 0x40], [5, 0x50]])
    #expect(
      try found { state in
        Self.list([(1, 0x40)])(&state)
        state.config(0x41, 0x40)
      } == [[1, 0x40]])
  }

  @Test func aPointerIntoTheHeaderEnds() throws {
    #expect(
      try found { state in
        Self.list([(1, 0x40)])(&state)
        state.config(0x41, 0x3c)
      } == [[1, 0x40]])
  }

  @Test func anEntryOfAllOnesEnds() throws {
    #expect(
      try found { state in
        Self.list([(1, 0x40), (5, 0x50)])(&state)
        state.config(0x50, 0xff, 0xff)
      } == [[1, 0x40]])
  }

  @Test func aListAsLongAsThereIsRoomHas48Entries() throws {
    let entries = (0..<48).map { (UInt8(9), UInt8(0x40 + 4 * $0)) }
    #expect(try found(Self.list(entries)).count == 48)
  }

  @Test func anIdIsFound() throws {
    let config = try ConfigSpaceTests.kernel(256, Self.list([(1, 0x40), (5, 0x50)])).config()
    #expect(try config.capability(5)?.offset == 0x50)
    #expect(try config.capability(0x11) == nil)
  }

  @Test func aReadThatFailsIsThrown() throws {
    let kernel = ConfigSpaceTests.kernel(4096, Self.list([(1, 0x40), (5, 0x50)]))
    let config = try kernel.config()
    kernel.fail("pread", nil, nil, nil, .inputOutput)
    #expect(throws: DMAError.self) { try config.capabilities() }
  }

  // MARK: The extended list

  private func foundExtended(
    _ byteCount: Int = 4096, _ change: (inout TestKernel.State) -> Void
  ) throws -> [[Int]] {
    try ConfigSpaceTests.kernel(byteCount, change).config().extendedCapabilities()
      .map { [Int($0.id), $0.offset] }
  }

  @Test func theExtendedListIsReadInItsOrder() throws {
    #expect(
      try foundExtended(4096, Self.extended([(1, 0x100), (0x0d, 0x200), (0x1e, 0xffc)])) == [
        [1, 0x100], [0x0d, 0x200], [0x1e, 0xffc],
      ])
  }

  @Test func aFirstEntryThatIsHiddenIsPassedOver() throws {
    #expect(try foundExtended(4096, Self.extended([(0, 0x100), (0x0d, 0x200)])) == [[0x0d, 0x200]])
  }

  @Test func conventionalPCIHasNoExtendedList() throws {
    #expect(try foundExtended(256) { _ in }.isEmpty)
    #expect(try foundExtended { _ in }.isEmpty)
    #expect(try foundExtended { $0.config(0x100, 0xff, 0xff, 0xff, 0xff) }.isEmpty)
  }

  @Test func anExtendedCircleEnds() throws {
    #expect(
      try foundExtended { state in
        Self.extended([(1, 0x100), (2, 0x200)])(&state)
        state.config(0x203, 0x10)
      } == [[1, 0x100], [2, 0x200]])
  }

  @Test func aPointerOutOfConfigSpaceEnds() throws {
    #expect(try foundExtended(512, Self.extended([(1, 0x100), (2, 0x1fc)])).count == 2)
    #expect(
      try foundExtended(512) { $0.config(0x100, 1, 0, 1, 0x20) } == [[1, 0x100]])
    #expect(try foundExtended { $0.config(0x100, 1, 0, 1, 0x0f) } == [[1, 0x100]])
  }

  /// Any bytes at all: no trap, no endless walk.
  @Test func garbageEnds() throws {
    var random = SplitMix64(seed: 1)
    for _ in 0..<50 {
      let kernel = ConfigSpaceTests.kernel { state in
        for index in 0..<4096 { state.regions[0].bytes[index] = UInt8.random(in: 0...255, using: &random) }
        state.config(0, 1, 1)
      }
      let config = try kernel.config()
      #expect(try config.capabilities().count <= 48)
      #expect(try config.extendedCapabilities().count <= 480)
      _ = try config.resetMethods()
      kernel.with { $0.clock = 0 }
      _ = try config.waitForTransactions(timeout: .milliseconds(1))
    }
  }
}
