import AddressSpace
import IOMMU
import IOMMUSimulation

/// A driver that does what a trace says, and the device that it drives.
///
/// For each mapping the device reads its descriptor, in a page that stays mapped as drivers' rings do, and then every page of the
/// mapping once; the driver unmaps it when that is done. The memory is its caller's, who keeps it.
@safe
final class SimulationPlayer {
  private let domain: DMADomain
  private let machine: SimulatedHost
  private let device: PCIAddress
  private let memory: UnsafeRawBufferPointer
  private var time: SimulatedTime
  private let ring: UnsafeMapping
  private let slots: SlotTable
  private var mapped: [Mapped]
  private var outcome = SimulationOutcome()

  /// What is in a slot; no pages where nothing is.
  private struct Mapped {
    var address: UInt64 = 0
    var pages = 0
    var since: UInt64 = 0
    var isWritten = false
  }

  /// - Parameter memory: Registered memory, as long as the longest mapping.
  init(
    _ device: Device, _ machine: SimulatedHost, _ memory: UnsafeRawBufferPointer, _ time: SimulatedTime, slotCount: Int
  ) throws(DMAError) {
    let page = unsafe UnsafeRawBufferPointer(rebasing: memory[..<4096])
    ring = try unsafe device.dma.map(unsafe: page, .bidirectional)
    (domain, self.machine, self.time) = (device.dma, machine, time)
    self.device = device.address
    unsafe self.memory = unsafe memory
    slots = SlotTable(slotCount)
    mapped = Array(repeating: Mapped(), count: slotCount)
  }

  /// Does all operations in order, and what was postponed at the end.
  func play(_ trace: Trace, isLazy: Bool) throws(DMAError) -> SimulationOutcome {
    let before = machine.queueCounts, began = time.now
    for phase in trace.phases {
      for operation in phase.operations {
        time.pass(0)
        switch operation.action {
        case .map: try map(operation)
        case .unmap: try unmap(Int(operation.slot))
        }
      }
    }
    try domain.drain()
    outcome.sent = machine.queueCounts.since(before)
    outcome.elapsed = time.now - began
    // What does not wait for a flush is out of reach when it returns.
    outcome.longestExposure =
      isLazy ? domain.statistics.longestWindowNanoseconds : outcome.latencies.max() ?? 0
    return outcome
  }

  private func map(_ operation: Trace.Operation) throws(DMAError) {
    let slot = Int(operation.slot)
    time.pass(DriverCosts.map(operation.pages))
    do throws(DMAError) {
      if operation.count == 1 {
        let mapping = try unsafe domain.map(unsafe: part(0, operation.pages), operation.direction)
        note(slot, mapping.address, operation)
        slots.put(slot, .unsafe(mapping))
      } else {
        let mapping = try domain.map(list(operation), operation.direction)
        note(slot, mapping.address, operation)
        slots.put(slot, .list(mapping))
      }
    } catch {
      guard error.code == .noSpace else { throw error }
      mapped[slot] = Mapped()
      outcome.noRoom += 1
    }
  }

  private func note(_ slot: Int, _ address: IOVA, _ operation: Trace.Operation) {
    mapped[slot] = Mapped(
      address: address.rawValue, pages: operation.pages, since: time.now, isWritten: operation.direction != .toDevice)
  }

  private func part(_ first: Int, _ count: Int) -> UnsafeRawBufferPointer {
    unsafe UnsafeRawBufferPointer(rebasing: memory[first * 4096..<(first + count) * 4096])
  }

  /// Its buffers follow each other in memory.
  private func list(_ operation: Trace.Operation) -> ScatterList {
    let pages = operation.pagesEach
    var list = ScatterList(capacity: Int(operation.count))
    for index in 0..<Int(operation.count) { unsafe list.append(unsafe: part(index * pages, pages)) }
    return list
  }

  private func unmap(_ slot: Int) throws(DMAError) {
    let what = mapped[slot]
    guard what.pages > 0 else { return }
    try transfer(what)
    let began = time.now
    time.pass(DriverCosts.unmap(what.pages))
    switch slots.take(slot) {
    case .unsafe(let mapping): try mapping.unmap()
    case .list(let mapping): _ = try mapping.unmap()
    default: break
    }
    outcome.latencies.append(time.now - began)
    outcome.byteCount += UInt64(what.pages) * 4096
  }

  private func transfer(_ what: Mapped) throws(DMAError) {
    let descriptor = ring.address.rawValue + UInt64(outcome.latencies.count % 256 * 16)
    var transfer = Transfer(pages: what.pages)
    transfer.reads = try touch(descriptor, 16, isWritten: false)
    transfer.reads += try touch(what.address, what.pages * 4096, isWritten: what.isWritten)
    time.wait(for: transfer, since: what.since)
    outcome.transfer += transfer
  }

  /// What a request of the device takes in reads of page tables.
  private func touch(_ iova: UInt64, _ byteCount: Int, isWritten: Bool) throws(DMAError) -> Int {
    guard let reads = machine.kernel.deviceTouches(device, iova, byteCount: byteCount, isWrite: isWritten) else {
      throw DMAError(
        .notMapped, "simulate", address: iova, byteCount: UInt64(byteCount), device: device.description,
        detail: "The device was refused what is mapped")
    }
    return reads
  }
}
