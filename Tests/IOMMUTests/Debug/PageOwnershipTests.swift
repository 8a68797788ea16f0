import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// The CPU is kept out of what a device owns.
@Suite struct PageOwnershipTests {
  /// By direction, and only while it is mapped; the device does not notice.
  @Test(arguments: LazyTests.Tables.allCases, [DMADirection.toDevice, .fromDevice, .bidirectional])
  func whileItIsMapped(_ tables: LazyTests.Tables, _ direction: DMADirection) throws {
    let rig = try DebugRig(tables)
    var buffer = try rig.dma.buffer(byteCount: 5000)
    buffer.store(UInt64(77))
    let base = StandingRig.memory(of: buffer), last = base + 8191
    #expect(Touch.mayRead(base) && Touch.mayWrite(last))
    var mapping = try rig.dma.map(buffer, direction)
    #expect(Touch.mayRead(base) == (direction == .toDevice) && !Touch.mayWrite(base) && !Touch.mayWrite(last))
    unsafe #expect(
      rig.dma.describe(UnsafeRawPointer(bitPattern: base + 100)!)?.contains("the buffer of 5000 bytes") == true)
    if direction != .fromDevice { try rig.read(mapping.address) }
    if direction != .toDevice { try rig.write(mapping.address + 4096) }
    // A part of it for a while: the pages that it is in.
    mapping.sync(for: .cpu, 4096..<4104) { _ in
      #expect(Touch.mayWrite(base + 4096) && !Touch.mayWrite(base))
    }
    #expect(!Touch.mayWrite(base + 4096))
    mapping.sync(for: .cpu) { span in span.storeBytes(of: UInt64(78), toByteOffset: 0, as: UInt64.self) }
    buffer = try mapping.unmap()
    #expect(Touch.mayWrite(base) && Touch.mayWrite(last))
    let (first, second) = (buffer.load(as: UInt64.self), buffer.load(at: 4096, as: UInt64.self))
    #expect(first == 78 && second == (direction == .bidirectional ? 77 : 0))
    #expect(rig.machine.faults.isEmpty && rig.reports.isEmpty)
    rig.device.close()
  }

  /// Dropped mappings, lists and links give the pages back as well, and what is mapped when the device is closed.
  @Test func howeverItEnds() throws {
    let rig = try DebugRig(), dma = rig.dma
    var bases: [UInt] = []
    func buffer() throws -> DMABuffer {
      let buffer = try dma.buffer(byteCount: 4096)
      bases.append(StandingRig.memory(of: buffer))
      return buffer
    }
    do {
      let dropped = try dma.map(try buffer(), .fromDevice)
      var list = ScatterList()
      list.append(try buffer())
      list.append(try buffer())
      let mapped = try dma.map(list, .bidirectional)
      var reservation = try dma.reserve(byteCount: 4096)
      try reservation.link(try buffer(), at: 0, .fromDevice)
      #expect(bases.allSatisfy { !Touch.mayRead($0) })
      _ = try mapped.unmap()
      _ = try reservation.destroy()
      _ = dropped.address
    }
    #expect(bases.count == 4 && bases.allSatisfy { Touch.mayWrite($0) })
    let left = try dma.map(try buffer(), .fromDevice)
    rig.device.close()
    let back = try left.unmap()
    #expect(Touch.mayWrite(StandingRig.memory(of: back)))
  }

  /// Memory that nobody may touch cannot be pinned: the protection is lifted while the arena is mapped.
  @Test(arguments: LazyTests.Tables.allCases)
  func switchingWhileItIsMapped(_ tables: LazyTests.Tables) throws {
    let rig = try DebugRig(tables), dma = rig.dma
    let buffer = try dma.buffer(byteCount: 4096), base = StandingRig.memory(of: buffer)
    let mapping = try dma.map(buffer, .fromDevice)
    try dma.switchProtection(to: .persistent)
    #expect(!Touch.mayRead(base))
    try dma.switchProtection(to: .strict)
    #expect(!Touch.mayRead(base))
    _ = try mapping.unmap()
    #expect(Touch.mayWrite(base))
    rig.device.close()
  }

  /// Whoever has a part by a sync keeps it over a switch, which takes nothing else from where it was.
  @Test func aSyncKeepsItsPart() throws {
    let rig = try DebugRig(), dma = rig.dma
    let buffer = try dma.buffer(byteCount: 8192), base = StandingRig.memory(of: buffer)
    var mapping = try dma.map(buffer, .fromDevice)
    try mapping.sync(for: .cpu, 0..<4096) { _ in
      try dma.switchProtection(to: .persistent)
      #expect(Touch.mayWrite(base) && !Touch.mayRead(base + 4096))
    }
    #expect(!Touch.mayRead(base))
    // It is over: the next switch opens nothing.
    try dma.switchProtection(to: .strict)
    #expect(!Touch.mayRead(base))
    _ = try mapping.unmap()
    rig.device.close()
  }

  /// No more at a time than mappings of the process are to be had for: the next is the CPU's as well.
  @Test func soManyAtATime() throws {
    let rig = try DebugRig(.ioas, .vtd, DebugOptions(frameCount: 0))
    var list = ScatterList(), bases: [UInt] = []
    for _ in 0...Limits.debugProtected {
      let buffer = try rig.dma.buffer(byteCount: 64)
      bases.append(StandingRig.memory(of: buffer))
      list.append(buffer)
    }
    let mapped = try rig.dma.map(list, .fromDevice)
    #expect(!Touch.mayRead(bases[0]) && !Touch.mayRead(bases[Limits.debugProtected - 1]))
    #expect(Touch.mayWrite(bases[Limits.debugProtected]))
    _ = try mapped.unmap()
    #expect(Touch.mayWrite(bases[0]) && Touch.mayWrite(bases[Limits.debugProtected - 1]))
    rig.device.close()
  }

  /// Not wanted, or refused by the kernel: everything goes as without.
  @Test func withoutIt() throws {
    let rig = try DebugRig(.ioas, .vtd, DebugOptions(keepsCPUOut: false))
    let buffer = try rig.dma.buffer(byteCount: 64), base = StandingRig.memory(of: buffer)
    let mapping = try rig.dma.map(buffer, .fromDevice)
    #expect(Touch.mayWrite(base))
    _ = try mapping.unmap()
    let other = try DebugRig()
    other.kernel.failFrom(1, of: "protectMemory", with: .noMemory)
    let second = try other.dma.buffer(byteCount: 64), place = StandingRig.memory(of: second)
    let mapped = try other.dma.map(second, .fromDevice)
    #expect(Touch.mayWrite(place))
    _ = try mapped.unmap()
    // What is given back is asked for again: who gets the buffer will touch it.
    other.kernel.passAll()
    let third = try other.dma.buffer(byteCount: 64), spot = StandingRig.memory(of: third)
    let again = try other.dma.map(third, .fromDevice)
    #expect(!Touch.mayRead(spot))
    other.kernel.fail(1, of: "protectMemory", with: .noMemory)
    _ = try again.unmap()
    #expect(Touch.mayWrite(spot))
    for rig in [rig, other] { rig.device.close() }
  }
}
