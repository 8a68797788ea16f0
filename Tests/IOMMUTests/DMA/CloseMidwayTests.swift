import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// A device is closed under a call that is many kernel calls: the close waits for the one under way and not for the rest, which
/// it does by itself, and whoever has called is told when nothing is in reach any more.
@Suite struct CloseMidwayTests {
  private typealias Tables = LazyTests.Tables
  private static let length = 2 * (32 << 20) + 4096

  @safe
  private final class Rig: @unchecked Sendable {
    let machine = SimulatedHost(devices: [LazyTests.address: EduModel(addressBits: 64)])
    let kernel: FaultingKernel
    let device: Device
    let tables: LazyTests.Tables
    /// Two areas and a page, which nobody touches.
    let memory: UnsafeRawBufferPointer
    var dma: DMADomain { device.dma }

    init(_ tables: LazyTests.Tables) throws {
      kernel = FaultingKernel(machine.kernel)
      self.tables = tables
      device = try Device(
        LazyTests.address, on: Host(kernel: kernel), interface: tables.interface, translation: .kernel)
      let base = unsafe try kernel.mapMemory(byteCount: CloseMidwayTests.length, descriptor: -1, offset: 0)
      unsafe memory = UnsafeRawBufferPointer(start: base, count: CloseMidwayTests.length)
    }

    deinit {
      let base = unsafe UnsafeMutableRawPointer(mutating: memory.baseAddress!)
      unsafe kernel.unmapMemory(base, byteCount: CloseMidwayTests.length)
    }

    /// Has another thread close the device while the next call of a name is under way.
    func close(under name: String) {
      kernel.resetCounts()
      kernel.interject(before: name) { [device] in
        inThread { device.close() }
        for _ in 0..<50_000 where !device.dma.isClosed { usleep(100) }
      }
    }

    var maps: Int { kernel.count(of: tables.mapCall) }
    /// Without the one that unmaps all.
    var unmaps: Int { kernel.count(of: tables.flushCall) - (tables == .ioas ? 1 : 0) }

    /// Everything is in order when a call returns that was overtaken.
    func check(_ what: String = "") {
      #expect(device.dma.isClosed && machine.kernel.census.pinnedBytes == 0, "\(what): out of reach")
      let statistics = device.dma.statistics
      #expect(statistics.liveMappings == 0 && statistics.liveBytes == 0 && statistics.leakedBytes == 0, "\(what)")
      #expect(statistics.queuedBytes == 0 && statistics.maps == statistics.unmaps, "\(what)")
    }
  }

  /// A call that is overtaken throws, and what it was about is out of reach by then.
  @Test(arguments: LazyTests.Tables.kernelOwned, ["bulk", "unsafe", "buffer", "tryMap", "list", "link", "register"])
  func aMapStops(_ tables: LazyTests.Tables, _ way: String) throws {
    let rig = try Rig(tables), dma = rig.dma
    var list = ScatterList(), reservation = try dma.reserve(byteCount: CloseMidwayTests.length), given: DMABuffer?
    unsafe list.append(unsafe: rig.memory)
    if way == "register" { try dma.switchProtection(to: .persistent) }
    if way == "buffer" || way == "tryMap" { given = try dma.buffer(byteCount: CloseMidwayTests.length) }
    rig.close(under: tables.mapCall)
    var code: DMAError.Code?
    do throws(DMAError) {
      switch way {
      case "bulk": _ = try unsafe dma.mapBulk(unsafe: rig.memory, .toDevice)
      case "unsafe": _ = try unsafe dma.map(unsafe: rig.memory, .toDevice)
      case "buffer": _ = try dma.map(given.take()!, .toDevice)
      case "tryMap":
        if case .failed(_, let error) = dma.tryMap(given.take()!, .toDevice) { code = error.code }
      case "list": _ = try dma.map(list, .toDevice)
      case "link": try unsafe reservation.link(unsafe: rig.memory, at: 0, .toDevice)
      default: _ = try unsafe dma.register(unsafe: rig.memory)
      }
    } catch { code = error.code }
    #expect(code == .closed && rig.maps == 1, "\(rig.maps) calls")
    rig.check(way)
  }

  /// An unmap that is overtaken has nothing more to do, and says so.
  @Test(arguments: LazyTests.Tables.kernelOwned, ["bulk", "unsafe", "buffer", "list", "unlink"])
  func anUnmapStops(_ tables: LazyTests.Tables, _ way: String) throws {
    let rig = try Rig(tables), dma = rig.dma
    switch way {
    case "bulk":
      guard let mapping = try unsafe dma.mapBulk(unsafe: rig.memory, .toDevice) else { return }
      rig.close(under: tables.flushCall)
      let rest = try mapping.unmapBulk()
      let isGone = rest == nil
      #expect(isGone)
    case "unsafe":
      let mapping = try unsafe dma.map(unsafe: rig.memory, .toDevice)
      rig.close(under: tables.flushCall)
      try mapping.unmap()
    case "buffer":
      let mapping = try dma.map(try dma.buffer(byteCount: CloseMidwayTests.length), .toDevice)
      rig.close(under: tables.flushCall)
      #expect(try mapping.unmap().byteCount == CloseMidwayTests.length)
    case "list":
      var list = ScatterList()
      unsafe list.append(unsafe: rig.memory)
      let mapped = try dma.map(list, .toDevice)
      rig.close(under: tables.flushCall)
      _ = try mapped.unmap()
    default:
      var reservation = try dma.reserve(byteCount: CloseMidwayTests.length)
      try unsafe reservation.link(unsafe: rig.memory, at: 0, .toDevice)
      rig.close(under: tables.flushCall)
      _ = try reservation.destroy()
    }
    #expect(rig.unmaps == 1, "\(rig.unmaps) calls")
    rig.check(way)
  }

  /// A flush of many ranges, and a cache of many maps: by a drain, which has nothing more to do, and by a switch.
  @Test(arguments: LazyTests.Tables.kernelOwned, ["drain", "switch", "drain a cache", "switch from a cache"])
  func whatWaitsStops(_ tables: LazyTests.Tables, _ way: String) throws {
    let isCached = way.hasSuffix("cache"), isDrain = way.hasPrefix("drain")
    let rig = try Rig(tables), dma = rig.dma
    let lazy = Protection.lazy(FlushQueueOptions(.single, timeout: LazyTests.patient))
    try dma.switchProtection(to: isCached ? .automatic(Caching.options()) : lazy)
    let pages = Pages(1), buffers = try (0..<20).map { _ in try RecurringBuffer(dma) }
    if isCached {
      for buffer in buffers { _ = try buffer.use(dma) }
    } else {
      for place in 1...20 as ClosedRange<UInt64> {
        try unsafe dma.map(unsafe: pages.all, .toDevice, at: IOVA(place * 0x2000)).unmap()
      }
      _ = try buffers[0].use(dma)
    }
    rig.close(under: tables.flushCall)
    do throws(DMAError) {
      if isDrain { try dma.drain() } else { try dma.switchProtection(to: .strict) }
      #expect(isDrain)
    } catch { #expect(!isDrain && error.code == .closed) }
    // A switch does not wait for the close.
    for _ in 0..<50_000 where rig.machine.kernel.census.pinnedBytes > 0 { usleep(100) }
    #expect(rig.unmaps == 1, "\(rig.unmaps) calls")
    for buffer in buffers { buffer.drop() }
    rig.check(way)
    #expect(dma.statistics.flushes == 0 && dma.statistics.failedFlushes == 0 && dma.statistics.cachedBytes == 0)
  }

  /// The dropped buffer's kept map is one of many calls that the close does by itself.
  @Test(arguments: LazyTests.Tables.kernelOwned)
  func aDroppedBufferStops(_ tables: LazyTests.Tables) throws {
    let rig = try Rig(tables), dma = rig.dma
    try dma.switchProtection(to: .automatic(Caching.options(1 << 30)))
    let buffer = try RecurringBuffer(dma, byteCount: CloseMidwayTests.length)
    _ = try buffer.use(dma)
    rig.close(under: tables.flushCall)
    buffer.drop()
    #expect(rig.unmaps == 1)
    rig.check()
  }

  /// What somebody is asked between two areas may close the device, on whichever thread.
  @Test(arguments: LazyTests.Tables.kernelOwned, [1, 3])
  func isCancelledMayClose(_ tables: LazyTests.Tables, _ threads: Int) throws {
    for (number, isMap) in [(1, true), (2, true), (3, true), (1, false), (2, false), (3, false)] {
      let rig = try Rig(tables), dma = rig.dma, device = rig.device, asked = Shared(0)
      let isCancelled: @Sendable () -> Bool = {
        let count = asked.change { count -> Int in
          count += 1
          return count
        }
        if count == number { device.close() }
        return false
      }
      if isMap {
        do throws(DMAError) {
          _ = try unsafe dma.mapBulk(unsafe: rig.memory, .toDevice, threads: threads, isCancelled: isCancelled)
          #expect(threads > 1, "other threads may have done all areas before")
        } catch {
          #expect(error.code == .closed && error.device == LazyTests.address)
          #expect(dma.statistics.failedMaps == 1)
        }
      } else {
        let mapping = try unsafe dma.map(unsafe: rig.memory, .toDevice)
        let rest = try mapping.unmapBulk(threads: threads, isCancelled: isCancelled)
        let isGone = rest == nil
        #expect(isGone)
      }
      rig.check("map: \(isMap)")
    }
  }
}
