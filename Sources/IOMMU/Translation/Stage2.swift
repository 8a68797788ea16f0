import AddressSpace
import Synchronization

/// The stage 2 of a process-owned translation: memory that the kernel has pinned, at IPAs that the library chose.
///
/// What registering, and mapping memory that nobody registered, comes to in system calls; whoever owns it writes stage 1.
final class Stage2: Sendable {
  let descriptor: IOMMUFDDescriptor
  let memory: RegisteredMemory
  private let filesRefused = Atomic<Bool>(false)
  private let isChanging = Atomic<Bool>(false)

  init(_ descriptor: IOMMUFDDescriptor) throws(RangeStoreFailure) {
    self.descriptor = descriptor
    memory = try RegisteredMemory()
  }

  private var kernel: any Kernel { descriptor.kernel }
  /// IPAs that an entry of every format and granule can lead to.
  static let reachable = IOVARange(start: IOVA(0), last: IOVA(1 << 48 - 1))!

  /// Changes which devices are attached, which takes several calls that nobody's own may come between.
  func changing<Value, Failure: Error>(_ body: () throws(Failure) -> Value) throws(Failure) -> Value {
    // No lock: a call sleeps.
    while !isChanging.compareExchange(expected: false, desired: true, ordering: .acquiring).exchanged {
      kernel.sleep(.microseconds(20))
    }
    defer { isChanging.store(false, ordering: .releasing) }
    return try body()
  }

  /// Takes over what the kernel offers for the devices attached now.
  func limitSpace() throws(Errno) {
    let ranges = try kernel.ioasRanges(descriptor.iommufd, ioas: descriptor.ioas)
    let granule = PageSizes(rawValue: max(ranges.alignment, 4096)).smallest ?? .fourKiB
    let reachable = IOVARanges(ranges.ranges).intersection([Self.reachable])
    do throws(RangeStoreFailure) { try memory.limit(to: reachable, granule: granule) } catch {
      throw .noMemory
    }
  }

  /// As ``ProcessOwnedTranslation/register(address:byteCount:file:areaByteCount:)``.
  func register(
    address: UInt64, byteCount: UInt64, file: Int32?, areaByteCount: UInt64
  ) throws(Errno) -> (areas: Int, fileAreas: Int) {
    let ipa = try memory.allocate(byteCount: byteCount, area: areaByteCount)
    var done: UInt64 = 0
    var count = (areas: 0, fileAreas: 0)
    do throws(Errno) {
      while done < byteCount {
        let part = min(areaByteCount, byteCount - done)
        if try enterFile(file, done, part, at: ipa + done) {
          count.fileAreas += 1
        } else {
          try enter(address + done, part, at: ipa + done, .readWrite)
        }
        count.areas += 1
        done += part
      }
      if !memory.add(address, byteCount: byteCount, ipa: ipa) { throw .exists }
    } catch {
      if done == 0 { memory.free(ipa) } else { try? leave(.init(address: address, ipa: ipa, byteCount: done)) }
      throw error
    }
    return count
  }

  /// As ``ProcessOwnedTranslation/unregister(address:)``.
  func unregister(address: UInt64) throws(Errno) {
    // None of those that were refused before is in use any more either.
    while let hidden = memory.takeHidden(address) { try leave(hidden) }
  }

  /// As ``ProcessOwnedTranslation/giveUp(address:)``.
  func giveUp(address: UInt64) {
    guard let registration = memory.takeFound(address) else { return }
    try? leave(registration)
  }

  private func leave(_ registration: RegisteredMemory.Hidden) throws(Errno) {
    do throws(Errno) { try takeOut(registration.ipa, registration.byteCount, again: registration.wasRefused) } catch {
      var registration = registration
      registration.wasRefused = true
      memory.keep(registration)
      throw error
    }
  }

  /// Registers memory for one mapping, with no more access than it has; where it lies then.
  func enter(_ address: UInt64, _ byteCount: UInt64, _ access: DMAAccess) throws(Errno) -> UInt64 {
    let ipa = try memory.allocate(byteCount: byteCount)
    do throws(Errno) { try enter(address, byteCount, at: ipa, access) } catch {
      memory.free(ipa)
      throw error
    }
    return ipa
  }

  private func enter(_ address: UInt64, _ byteCount: UInt64, at ipa: UInt64, _ access: DMAAccess) throws(Errno) {
    let placed = try kernel.ioasMap(
      descriptor.iommufd, ioas: descriptor.ioas, flags: KernelOwnedIOAS.flags(access), address: address,
      byteCount: byteCount, iova: ipa)
    if placed != ipa { throw .inputOutput }
  }

  /// By the file, which pins whole folios at a time; false on a kernel that cannot.
  private func enterFile(_ file: Int32?, _ start: UInt64, _ byteCount: UInt64, at ipa: UInt64) throws(Errno) -> Bool {
    guard let file, !filesRefused.load(ordering: .relaxed) else { return false }
    do throws(Errno) {
      let placed = try kernel.ioasMapFile(
        descriptor.iommufd, ioas: descriptor.ioas, flags: KernelOwnedIOAS.flags(.readWrite), file: file, start: start,
        byteCount: byteCount, iova: ipa)
      if placed != ipa { throw .inputOutput }
      return true
    } catch {
      if error != .notTypewriter { throw error }
      filesRefused.store(true, ordering: .relaxed)
      return false
    }
  }

  /// Makes an invalidation of a range, nil for everything, and unregisters what mappings in it had registered for themselves: what
  /// was retired before the invalidation began is out of reach when it is done. Returns the system calls of unregistering.
  func settle(_ range: IOVARange?, _ invalidation: () throws(Errno) -> Void) throws(Errno) -> UInt64 {
    let retired = memory.takeRetired(range)
    do throws(Errno) { try invalidation() } catch {
      for item in retired { memory.retire(item) }
      throw error
    }
    for item in retired { leave(item) }
    return UInt64(retired.count)
  }

  /// Takes memory of a mapping's own out of stage 2; what the kernel does not let go of, with the next invalidation.
  func leave(_ item: RegisteredMemory.Retired) {
    do throws(Errno) { try takeOut(item.ipa, item.iova.byteCount, again: item.wasRefused) } catch {
      var item = item
      item.wasRefused = true
      memory.retire(item)
    }
  }

  /// Takes memory out of stage 2, an area at a time. If the kernel will not, all or part of it stays pinned, out of reach for want of
  /// a stage 1 entry, and its IPAs are not used again; what of it went at the first attempt is missing at the next.
  private func takeOut(_ ipa: UInt64, _ byteCount: UInt64, again: Bool) throws(Errno) {
    let area = memory.next(from: ipa)?.area ?? byteCount
    var done: UInt64 = 0
    while done < byteCount {
      let length = min(area, byteCount - done)
      do throws(Errno) { if try unmap(ipa + done, length) != length && !again { throw .inputOutput } } catch {
        if error != .noEntry || !again { throw error }
      }
      done += length
    }
    memory.free(ipa)
  }

  func unmap(_ ipa: UInt64, _ byteCount: UInt64) throws(Errno) -> UInt64 {
    try kernel.ioasUnmap(descriptor.iommufd, ioas: descriptor.ioas, iova: ipa, byteCount: byteCount)
  }
}
