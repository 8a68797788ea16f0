import Synchronization

/// A base address register of a device: its registers, or its memory.
///
/// ```swift
/// let bar = try device.registers(bar: 0)
/// bar[0x10] = 1                                  // 32 bits
/// let status = bar.load(at: 0x20, as: UInt64.self)
/// ```
///
/// Each access is one load or store of exactly its width: never split, joined, repeated or left out. Where VFIO lets
/// the process map the BAR it is an instruction, else a `pread` or `pwrite` (on which kernels before 6.11 split 64 bits
/// in two); which of the two was decided when the BAR was opened.
///
/// **Order.** A store comes after all earlier stores to memory that the device reads, so a doorbell may follow its
/// descriptor directly; a load comes before all later loads, so what the device wrote before it set a register may be
/// read directly after it. The `relaxed` forms order accesses to this device among themselves only. A store may be
/// posted: to know that it has arrived, load from the same device.
///
/// - Warning: An access that is not aligned to its width or not inside the BAR is a mistake of the program and
///   stops it. So does an access to a mapped BAR while memory decoding is off in the command register (SIGBUS).
///
/// After the device was closed, or has gone, loads give all ones and stores go nowhere. The corresponding kernel
/// interface is a VFIO region, `VFIO_DEVICE_GET_REGION_INFO`.
@safe
public final class Registers: @unchecked Sendable {
  /// The length in bytes; offsets lie below it.
  public let byteCount: Int
  let handle: DeviceHandle
  let region: VFIORegionInfo
  /// What stays open while this is in use.
  private let owner: (any AnyObject & Sendable)?
  /// Where the BAR is mapped as a whole; nil when it is not, or in parts.
  private let base: UnsafeMutableRawPointer?
  /// What is mapped, by offset.
  let mappings: [RegisterMapping]
  private let closed = Atomic<Bool>(false)
  private let firstFailure = Mutex<DMAError?>(nil)

  /// Opens a region of a device. Throws ``DMAError/Code/noSuchResource`` when it is not there.
  package init(
    _ handle: DeviceHandle, region: VFIORegionInfo, owner: (any AnyObject & Sendable)? = nil
  ) throws(DMAError) {
    guard region.byteCount > 0, region.canRead || region.canWrite else {
      throw DMAError(
        .noSuchResource, "VFIO_DEVICE_GET_REGION_INFO", device: handle.name,
        detail: "The device has no \(region.name), or the kernel gives no access to it")
    }
    guard let byteCount = Int(exactly: region.byteCount) else {
      throw DMAError(
        .mismatch, "VFIO_DEVICE_GET_REGION_INFO", byteCount: region.byteCount, device: handle.name,
        detail: "\(region.name) is longer than the address space")
    }
    (self.handle, self.region, self.byteCount, self.owner) = (handle, region, byteCount, owner)
    mappings = try RegisterMapping.make(of: region, handle)
    unsafe base = mappings.first.flatMap { unsafe $0.range == 0..<byteCount ? $0.base : nil }
  }

  deinit {
    // A fork does not have the mappings: what is at their addresses there is something else.
    guard ProcessGuard.isOwner else { return }
    for mapping in mappings { mapping.remove(handle.kernel) }
  }

  /// The parts of the BAR that loads and stores reach without a system call.
  public var mappedRanges: [Range<Int>] { mappings.map(\.range) }

  /// The first access that the kernel refused, nil while all went well.
  ///
  /// Loads and stores do not throw: a load that fails gives all ones, as one from a device that is gone.
  public var failure: DMAError? { firstFailure.withLock { $0 } }

  /// Lets go of the device: later loads give all ones, and later stores go nowhere. Never fails; the second call does
  /// nothing.
  ///
  /// What was mapped gives way to private memory, since a mapped BAR keeps the device open. It is not touched, so it
  /// takes no room, however large the BAR.
  package func close() {
    guard closed.compareExchange(expected: false, desired: true, ordering: .sequentiallyConsistent).exchanged,
      ProcessGuard.isOwner
    else { return }
    for mapping in mappings { mapping.cover(handle.kernel) }
  }

  @inline(__always)
  func read<Word: VolatileWord>(at offset: Int, relaxed: Bool) -> Word {
    check(offset, MemoryLayout<Word>.size)
    guard let base = unsafe base else { return readPart(at: offset, relaxed: relaxed) }
    let value = unsafe Word.volatileLoad(base + offset, relaxed: relaxed)
    // Looked at after the load: what was read may have been the private memory.
    return closed.load(ordering: .relaxed) ? .max : value
  }

  @inline(__always)
  func write<Word: VolatileWord>(_ value: Word, at offset: Int, relaxed: Bool) {
    check(offset, MemoryLayout<Word>.size)
    guard let base = unsafe base else { return writePart(value, at: offset, relaxed: relaxed) }
    if closed.load(ordering: .relaxed) { return }
    unsafe Word.volatileStore(value, base + offset, relaxed: relaxed)
  }

  @inline(never)
  private func readPart<Word: VolatileWord>(at offset: Int, relaxed: Bool) -> Word {
    guard !closed.load(ordering: .acquiring) else { return .max }
    if let mapping = mappings.first(where: { $0.holds(offset, MemoryLayout<Word>.size) }) {
      let value = unsafe Word.volatileLoad(
        mapping.base + (offset - mapping.range.lowerBound), relaxed: relaxed)
      return closed.load(ordering: .relaxed) ? .max : value
    }
    do throws(DMAError) {
      return try handle.load(region, at: offset)
    } catch {
      note(error)
      return .max
    }
  }

  @inline(never)
  private func writePart<Word: VolatileWord>(_ value: Word, at offset: Int, relaxed: Bool) {
    guard !closed.load(ordering: .acquiring) else { return }
    if let mapping = mappings.first(where: { $0.holds(offset, MemoryLayout<Word>.size) }) {
      return unsafe Word.volatileStore(
        value, mapping.base + (offset - mapping.range.lowerBound), relaxed: relaxed)
    }
    do throws(DMAError) { try handle.store(value, region, at: offset) } catch { note(error) }
  }

  private func note(_ error: DMAError) {
    // The device was closed meanwhile, which is no failure.
    if error.code == .closed { return }
    firstFailure.withLock { if $0 == nil { $0 = error } }
  }

  @inline(__always)
  private func check(_ offset: Int, _ width: Int) {
    if offset < 0 || offset > byteCount &- width || offset & (width &- 1) != 0 { misuse(offset, width) }
  }

  @inline(never)
  private func misuse(_ offset: Int, _ width: Int) -> Never {
    let what = "\(region.name) of \(handle.name): \(width)-byte access at offset \(offset)"
    // Not preconditionFailure, whose text release builds drop.
    fatalError(
      offset >= 0 && offset <= byteCount - width
        ? "\(what) is not a multiple of its width" : "\(what) is outside its \(byteCount) bytes")
  }
}
