import AddressSpace
import AddressSpaceModels
import Glibc
import IOMMU
import IOMMUSimulation
import Synchronization

/// A device whose bus a test uses by itself, from any thread.
final class BusModel: DeviceModel {
  private let kept = Shared<DeviceBus?>(nil)
  var bus: DeviceBus? { kept.value }
  var identity: DeviceIdentity { EduModel(addressBits: 64).identity }
  func attach(to bus: DeviceBus) { kept.change { $0 = bus } }
  func read(bar: Int, offset: UInt64, width: Int, bus: DeviceBus) -> UInt64 { 0 }
  func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int, bus: DeviceBus) {}
}

/// What one thread does with a domain in debug mode: as a driver should, and everything that arrives is compared.
struct DebugLoad {
  private let dma: DMADomain
  private let bus: DeviceBus
  private var numbers: SplitMix64
  private let pages = Pages(3)
  /// Mappings that live for a while.
  private var kept: [Kept] = []

  struct Wrong: Error { let what: String }

  private final class Kept {
    var mapping: Mapping?
    let value: UInt64
    let direction: DMADirection
    init(_ mapping: consuming Mapping, _ value: UInt64, _ direction: DMADirection) {
      self.mapping = consume mapping
      (self.value, self.direction) = (value, direction)
    }
  }

  init(_ dma: DMADomain, _ bus: DeviceBus, seed: UInt64) {
    (self.dma, self.bus, numbers) = (dma, bus, SplitMix64(seed: seed))
  }

  private mutating func number(_ bound: Int) -> Int { Int(numbers.next() % UInt64(bound)) }

  mutating func step() throws {
    switch number(8) {
    case 0: try list()
    case 1: try link()
    case 2: try memory()
    case 3: try registration()
    case 4:
      // Dropped while it is mapped.
      _ = try dma.map(try dma.buffer(byteCount: 1 + number(9000)), .bidirectional)
    default:
      if kept.count > 8 {
        let index = number(kept.count)
        try end(kept.remove(at: index))
      } else {
        try begin()
      }
    }
  }

  mutating func finish() throws {
    while let last = kept.popLast() { try end(last) }
  }

  /// Both sides of a value: what the CPU stored, and what the device writes 8 bytes further on.
  private func exchange(_ address: IOVA, _ value: UInt64, _ direction: DMADirection) throws {
    if direction != .fromDevice, try bus.load(address.rawValue, as: UInt64.self) != value {
      throw Wrong(what: "the device reads something else")
    }
    if direction != .toDevice { try bus.store(~value, to: address.rawValue + 8) }
  }

  private mutating func begin() throws {
    let direction = [DMADirection.toDevice, .fromDevice, .bidirectional][number(3)], value = numbers.next()
    var buffer = try dma.buffer(byteCount: 16 + number(20_000))
    buffer.store(value)
    buffer.store(UInt64(0), at: 8)
    let mapping = try dma.map(buffer, direction)
    try exchange(mapping.address, value, direction)
    let new = Kept(mapping, value, direction)
    if number(2) == 0 { kept.append(new) } else { try end(new) }
  }

  private mutating func end(_ old: Kept) throws {
    guard var mapping = old.mapping.take() else { throw Wrong(what: "no mapping") }
    var value = old.value
    try exchange(mapping.address, value, old.direction)
    if number(2) == 0 {
      value = numbers.next()
      let isSame = mapping.sync(for: .cpu, 0..<16) { span in
        let found = unsafe span.unsafeLoad(fromByteOffset: 8, as: UInt64.self)
        span.storeBytes(of: value, toByteOffset: 0, as: UInt64.self)
        return old.direction == .toDevice || found == ~old.value
      }
      guard isSame else { throw Wrong(what: "a sync shows something else") }
      try exchange(mapping.address, value, old.direction)
    }
    let buffer = try mapping.unmap(), found = buffer.load(at: 8, as: UInt64.self)
    guard old.direction == .toDevice || found == ~value else { throw Wrong(what: "the buffer has something else") }
  }

  private mutating func list() throws {
    let value = numbers.next(), count = 1 + number(5)
    var list = ScatterList()
    for index in 0..<count {
      var buffer = try dma.buffer(byteCount: 16 + number(9000))
      buffer.store(value &+ UInt64(index))
      list.append(buffer)
    }
    let mapped = try dma.map(list, .bidirectional)
    for index in 0..<count {
      try exchange(mapped.address(ofBufferAt: index), value &+ UInt64(index), .bidirectional)
    }
    list = try mapped.unmap()
    for index in (0..<count).reversed() {
      let buffer = list.removeLast(), found = buffer.load(at: 8, as: UInt64.self)
      guard found == ~(value &+ UInt64(index)) else { throw Wrong(what: "a part of a list has something else") }
    }
  }

  private mutating func link() throws {
    let value = numbers.next()
    var buffer = try dma.buffer(byteCount: 4096)
    buffer.store(value)
    var reservation = try dma.reserve(byteCount: 4 * 4096)
    do throws(DMAError) { try reservation.link(buffer, at: 4096, .bidirectional) } catch {
      // Links cannot be copied, so that .bounce has none.
      if error.code == .notSupported { return }
      throw error
    }
    let linked = try reservation.sync()
    try exchange(linked.address + 4096, value, .bidirectional)
    _ = try linked.destroy()
  }

  private mutating func registration() throws {
    let registration: Registration
    do throws(DMAError) { registration = try unsafe dma.register(unsafe: pages.all) } catch {
      // On tables of the kernel's only while everything is to be mapped once for all.
      if error.code == .notSupported { return }
      throw error
    }
    try memory()
    try registration.unregister()
  }

  private mutating func memory() throws {
    let value = numbers.next(), count = 8 + 8 * number(1500)
    unsafe pages.memory.storeBytes(of: value, as: UInt64.self)
    unsafe pages.memory.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
    let mapping = try unsafe dma.map(unsafe: pages.part(0..<(8 + count)), .bidirectional, widening: true)
    try exchange(mapping.address, value, .bidirectional)
    try mapping.unmap()
    guard unsafe pages.memory.load(fromByteOffset: 8, as: UInt64.self) == ~value else {
      throw Wrong(what: "the caller's memory has something else")
    }
  }
}
