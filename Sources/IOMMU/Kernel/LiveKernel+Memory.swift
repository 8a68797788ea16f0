import CIOMMU

extension LiveKernel {
  package func createMemoryFile(_ name: String, byteCount: Int, hugePageShift: Int?) throws(Errno) -> Int32 {
    let flags = hugePageShift.map { CI_MFD_HUGETLB | UInt32($0) << 26 } ?? 0
    let descriptor = try check(unsafe ci_memfd_create(name, flags))
    do throws(Errno) {
      try check(ci_ftruncate(descriptor, UInt64(byteCount)))
    } catch {
      close(descriptor)
      throw error
    }
    return descriptor
  }

  package func mapMemory(
    byteCount: Int, descriptor: Int32, offset: UInt64
  ) throws(Errno) -> UnsafeMutableRawPointer {
    let flags = descriptor < 0 ? CI_MAP_PRIVATE | CI_MAP_ANONYMOUS : CI_MAP_SHARED
    let address = try check(
      ci_mmap(nil, UInt64(byteCount), CI_PROT_READ | CI_PROT_WRITE, flags, descriptor, offset))
    guard let base = unsafe UnsafeMutableRawPointer(bitPattern: UInt(UInt64(address))) else { throw .noMemory }
    return unsafe base
  }

  package func coverMemory(_ base: UnsafeMutableRawPointer, byteCount: Int) throws(Errno) {
    let flags = CI_MAP_PRIVATE | CI_MAP_ANONYMOUS | CI_MAP_FIXED
    try check(unsafe ci_mmap(base, UInt64(byteCount), CI_PROT_READ | CI_PROT_WRITE, flags, -1, 0))
  }

  package func unmapMemory(_ base: UnsafeMutableRawPointer, byteCount: Int) {
    _ = unsafe ci_munmap(base, UInt64(byteCount))
  }

  package func advise(_ base: UnsafeMutableRawPointer, byteCount: Int, _ advice: MemoryAdvice) throws(Errno) {
    let number =
      switch advice {
      case .dontFork: CI_MADV_DONTFORK
      case .wipeOnFork: CI_MADV_WIPEONFORK
      case .hugePage: CI_MADV_HUGEPAGE
      case .populateWrite: CI_MADV_POPULATE_WRITE
      }
    try check(unsafe ci_madvise(base, UInt64(byteCount), Int32(number)))
  }

  package func bindMemory(_ base: UnsafeMutableRawPointer, byteCount: Int, node: Int) throws(Errno) {
    guard node >= 0 else { throw .invalidArgument }
    try check(unsafe ci_mbind_node(base, UInt64(byteCount), Int32(CI_MPOL_PREFERRED), UInt32(node), 0))
  }

  package func protectMemory(
    _ base: UnsafeMutableRawPointer, byteCount: Int, _ protection: MemoryProtection
  ) throws(Errno) {
    try check(unsafe ci_mprotect(base, UInt64(byteCount), protection.bits))
  }

  package func pageMap(_ address: UInt64, pageCount: Int) throws(Errno) -> [UInt64] {
    try Self.pageMap(address, pageCount: pageCount)
  }

  /// For every kernel, as memory is real on each.
  package static func pageMap(_ address: UInt64, pageCount: Int) throws(Errno) -> [UInt64] {
    let file = unsafe ci_open("/proc/self/pagemap", CI_O_RDONLY, 0)
    guard file >= 0 else { throw Errno(rawValue: -file) }
    defer { _ = ci_close(file) }
    let start = address / ci_page_size() * 8
    var done: Int64 = 0
    let words = unsafe [UInt64](unsafeUninitializedCapacity: pageCount) { words, count in
      unsafe done = ci_pread_full(file, words.baseAddress!, UInt64(pageCount) * 8, start)
      count = max(Int(done), 0) / 8
    }
    guard done >= 0 else { throw Errno(rawValue: Int32(-done)) }
    guard words.count == pageCount else { throw .inputOutput }
    return words
  }

  package func isResident(_ page: UInt64) throws(Errno) -> Bool { try Self.isResident(page) }

  /// For every kernel, as memory is real on each.
  package static func isResident(_ page: UInt64) throws(Errno) -> Bool {
    let result = ci_is_resident(page)
    guard result >= 0 else { throw Errno(rawValue: -result) }
    return result != 0
  }

  package func readMemory(_ address: UInt64, byteCount: Int) throws(Errno) -> [UInt8] {
    try Self.readMemory(address, byteCount: byteCount)
  }

  /// For every kernel, as memory is real on each.
  package static func readMemory(_ address: UInt64, byteCount: Int) throws(Errno) -> [UInt8] {
    var done: Int64 = 0
    let bytes = unsafe [UInt8](unsafeUninitializedCapacity: byteCount) { bytes, count in
      if let base = bytes.baseAddress { unsafe done = ci_read_memory(base, address, UInt64(byteCount)) }
      count = max(Int(done), 0)
    }
    guard done >= 0 else { throw Errno(rawValue: Int32(-done)) }
    guard bytes.count == byteCount else { throw .badAddress }
    return bytes
  }

  package var pageByteCount: Int { Int(ci_page_size()) }

  package func memoryLockLimit() -> UInt64 {
    var limit = ci_rlimit()
    return unsafe ci_getrlimit(Int32(CI_RLIMIT_MEMLOCK), &limit) < 0 ? .max : limit.current
  }

  package func hasCapability(_ capability: Int) -> Bool { ci_has_capability(UInt32(capability)) == 1 }

  package func effectiveUser() -> UInt32 { ci_geteuid() }
}

extension MemoryProtection {
  /// As `mprotect` has it.
  package var bits: Int32 {
    switch self {
    case .none: CI_PROT_NONE
    case .readOnly: CI_PROT_READ
    case .readWrite: CI_PROT_READ | CI_PROT_WRITE
    }
  }
}
