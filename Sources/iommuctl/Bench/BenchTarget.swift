import AddressSpace
import IOMMU

/// What is mapped between an operation's two halves.
enum Held: ~Copyable {
  case nothing
  /// A range of an address allocator, and how long the allocation took.
  case range(IOVA, byteCount: UInt64, UInt64)
  case mapping(Mapping)
  case unsafe(UnsafeMapping)
  case list(MappedList)
}

/// What traces run on.
protocol BenchTarget: AnyObject, Sendable {
  /// Maps what an operation says, and counts the latency; nothing when there was no room, which is counted too.
  func map(_ operation: Trace.Operation, _ part: inout BenchPart) throws(DMAError) -> Held
  func unmap(_ held: consuming Held, _ part: inout BenchPart) throws(DMAError)
}

/// An address allocator alone.
final class AllocatorTarget: BenchTarget {
  let allocator: AddressAllocator
  let policy: SACFirst
  private let clock: BenchClock

  init(_ usable: IOVARanges, limit: UInt64, _ clock: BenchClock) throws(DMAError) {
    do throws(RangeStoreFailure) {
      allocator = try AddressAllocator(usable: usable, granule: .fourKiB)
    } catch { throw Self.failed(error, 0) }
    policy = SACFirst(limit: limit)
    self.clock = clock
  }

  static func failed(_ failure: RangeStoreFailure, _ byteCount: UInt64) -> DMAError {
    let code: DMAError.Code = failure == .outOfMemory ? .outOfMemory : .noSpace
    let isFull = failure == .noSpace || failure == .fragmented
    let detail =
      switch failure {
      case .noSpace, .fragmented: "No free range of this length is left within --dma-bits"
      case .outOfMemory: "No memory for the tables of the address allocator"
      default: "The address allocator refused it: \(failure)"
      }
    return DMAError(
      code, "allocate", byteCount: byteCount, detail: detail,
      remedy: isFull ? "Name a smaller --granule or more --dma-bits" : nil)
  }

  func map(_ operation: Trace.Operation, _ part: inout BenchPart) throws(DMAError) -> Held {
    let byteCount = (operation.total + 4095) & ~4095, began = BenchClock.now()
    do throws(RangeStoreFailure) {
      let start = try policy.allocate(allocator, byteCount)
      return .range(start, byteCount: byteCount, clock.between(began, BenchClock.now()))
    } catch {
      let time = clock.between(began, BenchClock.now())
      if error == .outOfMemory { throw Self.failed(error, byteCount) }
      part.failed.record(time)
      return .nothing
    }
  }

  func unmap(_ held: consuming Held, _ part: inout BenchPart) throws(DMAError) {
    switch consume held {
    case .range(let start, let byteCount, let time):
      let began = BenchClock.now()
      allocator.free(start, byteCount: byteCount)
      part.pair.record(time + clock.between(began, BenchClock.now()))
    default: break
    }
  }
}

/// A domain: buffers of its own, a new one for each map, as drivers have them.
final class DomainTarget: BenchTarget {
  private let domain: DMADomain
  private let clock: BenchClock

  init(_ domain: DMADomain, _ clock: BenchClock) { (self.domain, self.clock) = (domain, clock) }

  func map(_ operation: Trace.Operation, _ part: inout BenchPart) throws(DMAError) -> Held {
    var began: UInt64 = 0
    do throws(DMAError) {
      if operation.count == 1 {
        let buffer = try domain.buffer(byteCount: Int(operation.byteCount))
        began = BenchClock.now()
        let mapping = try domain.map(buffer, operation.direction)
        part.map.record(clock.between(began, BenchClock.now()))
        return .mapping(mapping)
      }
      var list = ScatterList(capacity: Int(operation.count))
      for _ in 0..<operation.count { list.append(try domain.buffer(byteCount: Int(operation.byteCount))) }
      began = BenchClock.now()
      let mapped = try domain.map(list, operation.direction)
      part.map.record(clock.between(began, BenchClock.now()))
      return .list(mapped)
    } catch {
      guard error.code == .noSpace, began != 0 else { throw error }
      part.failed.record(clock.between(began, BenchClock.now()))
      return .nothing
    }
  }

  func unmap(_ held: consuming Held, _ part: inout BenchPart) throws(DMAError) {
    switch consume held {
    case .mapping(let mapping):
      let began = BenchClock.now()
      _ = try mapping.unmap()
      part.unmap.record(clock.between(began, BenchClock.now()))
    case .list(let list):
      let began = BenchClock.now()
      _ = try list.unmap()
      part.unmap.record(clock.between(began, BenchClock.now()))
    default: break
    }
  }
}
