import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// What a domain tells of by itself may close the device, whichever call it comes from.
@Suite struct CloseFromNoticeTests {
  private static let fourGiB: UInt64 = 1 << 32

  @Test(arguments: [
    "buffer", "tryMap", "list", "reserve", "bulk", "unsafe", "allocate", "persistent", "growth", "register", "bounce",
    "debug", "nothing",
  ])
  func onNoticeMayClose(_ way: String) throws {
    let machine = SimulatedHost(devices: [LazyTests.address: EduModel(addressBits: 64)]), told = Shared(0)
    do {
      let device = try Device(
        LazyTests.address, on: machine.host, translation: .kernel,
        debug: way == "debug" ? DebugOptions(guardPages: 0, onReport: { _ in }) : nil)
      let dma = device.dma, pages = Pages(1)
      // Nothing is mapped yet, whatever the way.
      if way == "growth" || way == "register" { try dma.switchProtection(to: .persistent) }
      let given = way == "growth" || way == "register" ? nil : Given(try dma.buffer(byteCount: 64))
      if way == "nothing" { try dma.setMask(.bits(33)) }
      let taken = IOVARange(start: IOVA(0), byteCount: way == "nothing" ? 2 * Self.fourGiB : Self.fourGiB)!
      try Self.taking(dma.usableRanges.intersection([taken]).sorted { $0.byteCount > $1.byteCount }, dma) {
        dma.setAddressPolicy(.sacFirst)
        dma.onNotice { _ in
          told.change { $0 += 1 }
          device.close()
        }
        do throws(DMAError) { try Self.map(way, dma, given, pages) } catch {
          #expect(way == "nothing" && error.code == .noSpace, "\(error)")
        }
        #expect(told.value == 1 && device.isClosed && dma.isClosed, "\(way)")
        dma.onNotice(nil)
      }
      #expect(dma.statistics.leakedBytes == 0 && dma.statistics.liveMappings == 0)
    }
    #expect(machine.isClean)
  }

  private static func map(_ way: String, _ dma: DMADomain, _ given: Given?, _ pages: Pages) throws(DMAError) {
    switch way {
    case "bounce":
      try dma.switchProtection(to: .bounce)
      _ = try dma.map(given!.take(), .toDevice).unmap()
    case "buffer", "debug", "nothing": _ = try dma.map(given!.take(), .toDevice).unmap()
    case "tryMap":
      guard case .mapped(let mapping) = dma.tryMap(given!.take(), .toDevice) else { throw DMAError(.system, "tryMap") }
      _ = try mapping.unmap()
    case "list":
      var list = ScatterList()
      list.append(given!.take())
      _ = try dma.map(list, .toDevice).unmap()
    case "reserve": _ = try dma.reserve(byteCount: 4096).destroy()
    case "bulk":
      guard let mapping = try unsafe dma.mapBulk(unsafe: pages.all, .toDevice) else { return }
      try mapping.unmap()
    case "unsafe": try unsafe dma.map(unsafe: pages.all, .toDevice).unmap()
    case "allocate": _ = try dma.allocate(UInt8.self, count: 8)
    case "persistent": try dma.switchProtection(to: .persistent)
    case "growth": _ = try dma.buffer(byteCount: 1 << 20)
    default: try unsafe dma.register(unsafe: pages.all).unregister()
    }
  }

  /// Calls a function while no address of some ranges is free, the longest first.
  private static func taking(_ ranges: [IOVARange], _ dma: DMADomain, _ body: () throws -> Void) throws {
    guard let range = ranges.first else { return try body() }
    let reservation = try dma.reserve(byteCount: Int(range.byteCount), alignment: dma.granule)
    try taking(Array(ranges.dropFirst()), dma, body)
    _ = try reservation.destroy()
  }

  /// A buffer that somebody else takes.
  private final class Given {
    private var buffer: DMABuffer?
    init(_ buffer: consuming DMABuffer) { self.buffer = consume buffer }
    func take() -> DMABuffer { buffer.take()! }
  }
}
