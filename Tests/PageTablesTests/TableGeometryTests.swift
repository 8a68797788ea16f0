import AddressSpace
import PageTables
import Testing

@Suite struct TableGeometryTests {
  /// Levels as the architectures have them: LPAE of 39 and 48 bits, VT-d's and x86-64's four and five levels.
  @Test(
    arguments: [
      (12, 39, 3), (12, 48, 4), (12, 57, 5), (14, 39, 3), (14, 48, 4), (16, 39, 2), (16, 48, 3),
    ] as [(UInt8, UInt8, UInt8)])
  func levels(_ shift: UInt8, _ bits: UInt8, _ levels: UInt8) {
    let geometry = TableGeometry(granule: PageSize(shift: shift), inputBits: bits)
    #expect(geometry.levels == levels)
    #expect(geometry.last == UInt64.max >> (64 - UInt64(bits)))
    #expect(geometry.bitsPerLevel == shift - 3)
    #expect(geometry.entryCount == 1 << Int(shift - 3))
    for level in 0..<levels {
      #expect(geometry.shift(level: level) == shift + level * (shift - 3))
      #expect(geometry.level(shift: geometry.shift(level: level)) == level)
    }
    #expect(geometry.level(shift: geometry.shift(level: levels)) == nil)
    #expect(geometry.level(shift: shift - 1) == nil)
    #expect(geometry.level(shift: shift + 1) == nil)
  }
}
