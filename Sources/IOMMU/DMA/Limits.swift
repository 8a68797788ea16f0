/// Every bound of the library, with its reason.
package enum Limits {
  /// One area of base pages, in bytes: mapping or unmapping it takes the kernel about 1 ms.
  package static let areaByteCount = 32 << 20
  /// One area of huge pages, in bytes: the same time.
  package static let hugeAreaByteCount = 128 << 20
  /// Arena memory is handed out in multiples of this many bytes: a cache line, so that no two arrays share one.
  package static let arenaUnit = 64
  /// The first chunk of an arena, in bytes: small beside the usual 8 MiB of lockable memory.
  package static let firstChunkByteCount = 256 << 10
  /// A chunk that grows an arena on its own account is at most this large, in bytes.
  package static let largestGrowthByteCount = 4 << 20
  /// A request of at least this many bytes tries huge pages.
  package static let hugePageByteCount = 2 << 20
  /// How long ``Device/close()`` waits for transactions that the device has under way; PCIe's completion time-out is at
  /// most 64 s by choice and 50 ms by default.
  package static let pendingTransactions = Duration.milliseconds(200)
}
