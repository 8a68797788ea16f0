/// Everything that the library asks of the operating system: a method a system call or ioctl.
///
/// ``LiveKernel`` asks Linux through the C shim, `SimulatedKernel` is a small kernel in this process,
/// `FaultingKernel` wraps either and fails a chosen call. Above this protocol there is one code path
/// for all of them. Descriptors are plain numbers here; who owns one is said by `OwnedDescriptor`.
/// On the simulated kernel only event descriptors and memory files are real descriptors.
package protocol Kernel: KernelFiles, KernelMemory, KernelEvents, KernelVFIO, KernelIOMMUFD {
  /// What the kernel is called in output: `linux`, or `simulated`.
  var name: String { get }
  /// Whether this kernel exists only in this process.
  var isSimulated: Bool { get }
}

/// Files and directories: sysfs, procfs and device nodes, below a root that can be changed.
package protocol KernelFiles: AnyObject, Sendable {
  /// The whole of a small file. The corresponding calls are `open`, `read`, `close`.
  func readFile(_ path: String) throws(Errno) -> [UInt8]
  /// Writes all of `text` in one `write`, as sysfs attributes want it.
  func writeFile(_ path: String, _ text: String) throws(Errno)
  /// Keeps `text` in a file of this library's own, such as one under `/run`: the directories above are made when
  /// missing, and a reader sees the old text or the new one, never a part. ENOSYS on kernels that keep no files.
  func storeFile(_ path: String, _ text: String) throws(Errno)
  /// Removes a file that ``storeFile(_:_:)`` made. The corresponding call is `unlink`.
  func removeFile(_ path: String) throws(Errno)
  /// The names in a directory without `.` and `..`, sorted.
  func listDirectory(_ path: String) throws(Errno) -> [String]
  /// Where a symbolic link points. The corresponding call is `readlink`.
  func readLink(_ path: String) throws(Errno) -> String
  /// Kind, mode and owner; follows links. The corresponding call is `stat`.
  func status(_ path: String) throws(Errno) -> FileStatus
  /// Throws what `open` would answer this process. The corresponding call is `faccessat` with effective ids.
  func checkAccess(_ path: String, write: Bool) throws(Errno)
  /// Opens a device node read-write and close-on-exec.
  func open(_ path: String) throws(Errno) -> Int32
  /// Closes a descriptor; never throws, since nothing can be done then.
  func close(_ descriptor: Int32)
  /// Reads at an offset: config space, a BAR that cannot be mapped. Returns the bytes read.
  func pread(_ descriptor: Int32, _ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(Errno) -> Int
  /// Writes at an offset. Returns the bytes written.
  func pwrite(_ descriptor: Int32, _ buffer: UnsafeRawBufferPointer, at offset: UInt64) throws(Errno) -> Int
}

extension KernelEvents {
  package func costClock() -> UInt64 { now() }
  package func coarseNow() -> UInt64 { now() }
}

extension KernelFiles {
  package func storeFile(_ path: String, _ text: String) throws(Errno) { throw .notImplemented }
  package func removeFile(_ path: String) throws(Errno) { throw .notImplemented }
}

/// What `stat` says of a file.
package struct FileStatus: Hashable, Sendable {
  package enum Kind: Sendable { case regular, directory, characterDevice, other }
  package var kind: Kind
  /// Permission bits, 0o7777.
  package var mode: UInt32
  package var owner: UInt32
  package var group: UInt32
  package init(kind: Kind, mode: UInt32, owner: UInt32, group: UInt32) {
    (self.kind, self.mode, self.owner, self.group) = (kind, mode, owner, group)
  }
}

/// Memory of this process and what limits it. Real memory on every kernel.
package protocol KernelMemory: AnyObject, Sendable {
  /// A memory file, sized. `hugePageShift` asks for hugetlb pages of that size (21, 30), nil for base pages.
  /// The corresponding calls are `memfd_create` and `ftruncate`.
  func createMemoryFile(_ name: String, byteCount: Int, hugePageShift: Int?) throws(Errno) -> Int32
  /// Maps shared memory of a descriptor, or private zeroed memory for descriptor -1. The corresponding call is `mmap`.
  func mapMemory(byteCount: Int, descriptor: Int32, offset: UInt64) throws(Errno) -> UnsafeMutableRawPointer
  /// Puts private zeroed memory in the place of a mapping, at the same address. The corresponding call is `mmap` with `MAP_FIXED`.
  func coverMemory(_ base: UnsafeMutableRawPointer, byteCount: Int) throws(Errno)
  /// The corresponding call is `munmap`.
  func unmapMemory(_ base: UnsafeMutableRawPointer, byteCount: Int)
  /// The corresponding call is `madvise`.
  func advise(_ base: UnsafeMutableRawPointer, byteCount: Int, _ advice: MemoryAdvice) throws(Errno)
  /// Prefers a NUMA node for pages not yet touched. The corresponding call is `mbind` with `MPOL_PREFERRED`.
  func bindMemory(_ base: UnsafeMutableRawPointer, byteCount: Int, node: Int) throws(Errno)
  /// Says what the CPU may do with whole pages. The corresponding call is `mprotect`; ENOSYS where debug mode is not provided for.
  func protectMemory(_ base: UnsafeMutableRawPointer, byteCount: Int, _ protection: MemoryProtection) throws(Errno)
  /// A word a page from an address on, as `/proc/self/pagemap` has them; ENOSYS as above.
  func pageMap(_ address: UInt64, pageCount: Int) throws(Errno) -> [UInt64]
  /// Whether the page at an address is in memory, in that of the process or in the cache of its file; ENOMEM where nothing is
  /// mapped. The corresponding call is `mincore`.
  func isResident(_ page: UInt64) throws(Errno) -> Bool
  /// Reads memory of this process that may not be there, all or none of it. The corresponding call is `process_vm_readv`.
  func readMemory(_ address: UInt64, byteCount: Int) throws(Errno) -> [UInt8]
  /// The CPU's smallest page in bytes. The corresponding call is `sysconf` with `_SC_PAGESIZE`.
  var pageByteCount: Int { get }
  /// The most memory that this process can have, in bytes: see ``MachineMemory``.
  var memoryByteCount: UInt64 { get }
  /// The soft limit of lockable memory in bytes, `UInt64.max` when unlimited. The corresponding limit is `RLIMIT_MEMLOCK`.
  func memoryLockLimit() -> UInt64
  /// Whether this process has a capability in its effective set: `CAP_IPC_LOCK` is 14, `CAP_SYS_ADMIN` 21.
  func hasCapability(_ capability: Int) -> Bool
  /// The effective user. The corresponding call is `geteuid`.
  func effectiveUser() -> UInt32
}

/// Advice of `madvise` that the library gives.
package enum MemoryAdvice: Sendable { case dontFork, wipeOnFork, hugePage, populateWrite }

/// Event descriptors, waiting, time and the kernel's log.
package protocol KernelEvents: AnyObject, Sendable {
  /// A non-blocking, close-on-exec event counter; a real descriptor on every kernel. The corresponding call is `eventfd`.
  func createEvent() throws(Errno) -> Int32
  /// Takes the count and clears it; nil when it was zero.
  func takeEvent(_ descriptor: Int32) throws(Errno) -> UInt64?
  /// Adds one to an event counter.
  func signalEvent(_ descriptor: Int32) throws(Errno)
  /// Waits until a descriptor of the list is readable, at most `timeout` (nil: no limit). Returns the index of
  /// the first that is, nil when the time is up. The corresponding call is `ppoll`.
  func waitReadable(_ descriptors: [Int32], timeout: Duration?) throws(Errno) -> Int?
  /// Nanoseconds of a clock that never goes back. The corresponding clock is `CLOCK_MONOTONIC`.
  func now() -> UInt64
  /// The same clock, cheaper to read, and up to a tick of the kernel behind. The corresponding clock is
  /// `CLOCK_MONOTONIC_COARSE`.
  func coarseNow() -> UInt64
  /// The clock that tells what kernel and hardware take, in nanoseconds; on a simulated machine it goes on by what its table
  /// of costs says, and by nothing else.
  func costClock() -> UInt64
  /// Sleeps this long.
  func sleep(_ duration: Duration)
  /// Lines of the kernel's log from `sequence` on, oldest first, each with its own sequence number. The corresponding
  /// file is `/dev/kmsg`.
  func kernelLog(from sequence: UInt64) throws(Errno) -> [KernelLogLine]
}

/// A line of the kernel's log.
package struct KernelLogLine: Hashable, Sendable {
  package var sequence: UInt64
  /// Nanoseconds since boot.
  package var time: UInt64
  package var text: String
  package init(sequence: UInt64, time: UInt64, text: String) {
    (self.sequence, self.time, self.text) = (sequence, time, text)
  }
}

/// What the CPU may do with memory.
package enum MemoryProtection: Sendable { case none, readOnly, readWrite }

extension KernelMemory {
  package func protectMemory(
    _ base: UnsafeMutableRawPointer, byteCount: Int, _ protection: MemoryProtection
  ) throws(Errno) { throw .notImplemented }
  package func pageMap(_ address: UInt64, pageCount: Int) throws(Errno) -> [UInt64] { throw .notImplemented }
  package func isResident(_ page: UInt64) throws(Errno) -> Bool { throw .notImplemented }
  package func readMemory(_ address: UInt64, byteCount: Int) throws(Errno) -> [UInt8] { throw .notImplemented }
  package var pageByteCount: Int { 4096 }
  package var memoryByteCount: UInt64 { MachineMemory.byteCount }
}
