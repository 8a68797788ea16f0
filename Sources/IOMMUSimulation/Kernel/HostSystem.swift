import CIOMMU
import IOMMU

/// The few calls of the real system that the simulated kernel makes: memory and event descriptors are real.
enum HostSystem {
  /// The value of a shim's call.
  private static func check(_ result: Int32) throws(Errno) -> Int32 {
    guard result >= 0 else { throw Errno(rawValue: -result) }
    return result
  }

  private static func check(_ result: Int64) throws(Errno) -> Int64 {
    guard result >= 0 else { throw Errno(rawValue: Int32(-result)) }
    return result
  }
}

// MARK: - Memory

extension HostSystem {
  /// Shared memory of a file, or private zeroed memory for descriptor -1. Addresses are numbers here, since they
  /// cross locks.
  static func map(byteCount: Int, descriptor: Int32, offset: UInt64, isWritable: Bool) throws(Errno) -> UInt {
    let protection = isWritable || descriptor < 0 ? CI_PROT_READ | CI_PROT_WRITE : CI_PROT_READ
    let flags = descriptor < 0 ? CI_MAP_PRIVATE | CI_MAP_ANONYMOUS : CI_MAP_SHARED
    let base = ci_mmap(nil, UInt64(byteCount), protection, flags, descriptor, offset)
    return UInt(try check(base))
  }

  /// Private zeroed memory at an address, in the place of what is there.
  static func cover(_ base: UInt, byteCount: Int) throws(Errno) {
    let flags = CI_MAP_PRIVATE | CI_MAP_ANONYMOUS | CI_MAP_FIXED
    let pointer = unsafe UnsafeMutableRawPointer(bitPattern: base)
    _ = try check(
      unsafe ci_mmap(pointer, UInt64(byteCount), CI_PROT_READ | CI_PROT_WRITE, flags, -1, 0))
  }

  static func unmap(_ base: UInt, byteCount: Int) {
    guard let pointer = unsafe UnsafeMutableRawPointer(bitPattern: base) else { return }
    _ = unsafe ci_munmap(pointer, UInt64(byteCount))
  }

  static func protect(_ base: UInt, byteCount: Int, _ protection: Int32) throws(Errno) {
    guard let pointer = unsafe UnsafeMutableRawPointer(bitPattern: base) else { throw .noMemory }
    _ = try check(unsafe ci_mprotect(pointer, UInt64(byteCount), protection))
  }

  static func advise(_ base: UInt, byteCount: Int, _ advice: Int32) throws(Errno) {
    guard let pointer = unsafe UnsafeMutableRawPointer(bitPattern: base) else { throw .noMemory }
    _ = try check(unsafe ci_madvise(pointer, UInt64(byteCount), advice))
  }

  /// Faults pages in, as a pin does. EFAULT where there is no memory, or none that may be accessed so.
  static func populate(_ base: UInt, byteCount: Int, forWriting: Bool) throws(Errno) {
    do throws(Errno) {
      try advise(base, byteCount: byteCount, forWriting ? CI_MADV_POPULATE_WRITE : CI_MADV_POPULATE_READ)
    } catch {
      throw .badAddress
    }
  }

  static func createMemoryFile(_ name: String, byteCount: Int, hugePageShift: Int?) throws(Errno) -> Int32 {
    let flags = hugePageShift.map { CI_MFD_HUGETLB | UInt32($0) << 26 } ?? 0
    let file = try check(unsafe ci_memfd_create(name, flags))
    do throws(Errno) {
      _ = try check(ci_ftruncate(file, UInt64(byteCount)))
    } catch {
      close(file)
      throw error
    }
    return file
  }

  /// The length of a memory file; EBADF for no descriptor, EINVAL for one of another kind.
  static func memoryFileByteCount(_ file: Int32) throws(Errno) -> UInt64 {
    guard try target(of: file).hasPrefix("/memfd:") else { throw .invalidArgument }
    var status = ci_file_status()
    _ = try check(unsafe ci_fstat(file, &status))
    return status.size
  }
}

// MARK: - Descriptors and time

extension HostSystem {
  static func createEvent() throws(Errno) -> Int32 { try check(ci_eventfd(0)) }

  static func takeEvent(_ event: Int32) throws(Errno) -> UInt64? {
    var count: UInt64 = 0
    let result = unsafe ci_eventfd_read(event, &count)
    if result == -Errno.wouldBlock.rawValue { return nil }
    _ = try check(result)
    return count
  }

  static func signalEvent(_ event: Int32) throws(Errno) { _ = try check(ci_eventfd_write(event, 1)) }

  static func duplicate(_ descriptor: Int32) throws(Errno) -> Int32 { try check(ci_dup(descriptor)) }

  static func close(_ descriptor: Int32) { _ = ci_close(descriptor) }

  static func isOpen(_ descriptor: Int32) -> Bool {
    var status = ci_file_status()
    return unsafe ci_fstat(descriptor, &status) == 0
  }

  /// Whether a descriptor is an event counter. EBADF when it is none at all.
  static func isEvent(_ descriptor: Int32) throws(Errno) -> Bool {
    try target(of: descriptor).contains("eventfd")
  }

  /// What a descriptor refers to, as procfs names it.
  private static func target(of descriptor: Int32) throws(Errno) -> String {
    var text = [CChar](repeating: 0, count: 256)
    let count = unsafe ci_readlink("/proc/self/fd/\(descriptor)", &text, UInt64(text.count))
    guard count >= 0 else { throw .badDescriptor }
    return String(decoding: text.prefix(Int(count)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// Waits until one is readable, at most this many nanoseconds: its index, nil when the time is up.
  static func wait(_ descriptors: [Int32], nanoseconds: Int64) throws(Errno) -> Int? {
    var list = descriptors.map { ci_pollfd(fd: $0, events: Int16(CI_POLLIN), revents: 0) }
    let ready = try check(unsafe ci_poll(&list, UInt32(list.count), nanoseconds))
    return ready == 0 ? nil : list.firstIndex { $0.revents != 0 }
  }

  static func nanoseconds() -> UInt64 { UInt64(ci_monotonic_ns()) }
  static func coarseNanoseconds() -> UInt64 { UInt64(ci_coarse_monotonic_ns()) }
}
