import AddressSpace
import PageTables
import Testing

/// What no correct caller does stops the program before it does harm.
struct MisuseTests {
  private static var space: TestSpace { TestSpace(TestFormat.all[0], tables: 8) }

  @Test func rangesBeyondTheSpace() async {
    await #expect(processExitsWith: .failure) { _ = MisuseTests.space.map(1 << 39, to: 0, 0x1000) }
    await #expect(processExitsWith: .failure) { _ = MisuseTests.space.map((1 << 39) - 0x1000, to: 0, 0x2000) }
    await #expect(processExitsWith: .failure) { _ = MisuseTests.space.unmap((1 << 39) - 0x1000, .max & ~0xfff) }
    await #expect(processExitsWith: .failure) { _ = MisuseTests.space.map(0, to: 1 << 48, 0x1000) }
    await #expect(processExitsWith: .failure) { _ = MisuseTests.space.map(0, to: (1 << 48) - 0x1000, 0x2000) }
  }

  @Test func partsOfPages() async {
    await #expect(processExitsWith: .failure) { _ = MisuseTests.space.map(0x800, to: 0, 0x1000) }
    await #expect(processExitsWith: .failure) { _ = MisuseTests.space.map(0, to: 0x800, 0x1000) }
    await #expect(processExitsWith: .failure) { _ = MisuseTests.space.map(0, to: 0, 0x1800) }
    await #expect(processExitsWith: .failure) { _ = MisuseTests.space.unmap(0, 0) }
  }

  @Test func accessOfNoKind() async {
    await #expect(processExitsWith: .failure) { _ = MisuseTests.space.map(0, to: 0, 0x1000, .device) }
  }

  @Test func moreThanWasReserved() async {
    await #expect(processExitsWith: .failure) { MisuseTests.space.pool.extend(byteCount: 0x1000) }
  }
}
