import CIOMMU

extension LiveKernel {
  package func createEvent() throws(Errno) -> Int32 { try check(ci_eventfd(0)) }

  package func takeEvent(_ descriptor: Int32) throws(Errno) -> UInt64? {
    var count: UInt64 = 0
    let result = unsafe ci_eventfd_read(descriptor, &count)
    if result == -Errno.wouldBlock.rawValue { return nil }
    try check(result)
    return count
  }

  package func signalEvent(_ descriptor: Int32) throws(Errno) { try check(ci_eventfd_write(descriptor, 1)) }

  package func waitReadable(_ descriptors: [Int32], timeout: Duration?) throws(Errno) -> Int? {
    var entries = descriptors.map { descriptor in
      var entry = ci_pollfd()
      entry.fd = descriptor
      entry.events = Int16(CI_POLLIN)
      return entry
    }
    let wait = timeout.map { max($0.nanoseconds, 0) } ?? -1
    let ready = try check(
      unsafe entries.withUnsafeMutableBufferPointer { unsafe ci_poll($0.baseAddress!, UInt32($0.count), wait) })
    return ready == 0 ? nil : entries.firstIndex { $0.revents != 0 }
  }

  package func now() -> UInt64 { UInt64(ci_monotonic_ns()) }

  package func coarseNow() -> UInt64 { UInt64(ci_coarse_monotonic_ns()) }

  package func sleep(_ duration: Duration) { _ = ci_sleep_ns(max(duration.nanoseconds, 0)) }

  /// A read of `/dev/kmsg` gives one record: `priority,sequence,microseconds,flags;text`. EPIPE: records were lost in between.
  package func kernelLog(from sequence: UInt64) throws(Errno) -> [KernelLogLine] {
    let descriptor = try check(unsafe ci_open(root + "/dev/kmsg", CI_O_RDONLY | CI_O_NONBLOCK, 0))
    defer { close(descriptor) }
    var lines: [KernelLogLine] = []
    var buffer = [UInt8](repeating: 0, count: 8192)
    while lines.count < 1 << 16 {
      let size = unsafe buffer.withUnsafeMutableBytes { unsafe ci_read(descriptor, $0.baseAddress!, UInt64($0.count)) }
      if size == -32 { continue }  // EPIPE
      if size <= 0 { break }  // EAGAIN: no more
      if let line = Self.record(buffer.prefix(Int(size))), line.sequence >= sequence { lines.append(line) }
    }
    return lines
  }

  private static func record(_ bytes: ArraySlice<UInt8>) -> KernelLogLine? {
    guard let end = bytes.firstIndex(of: UInt8(ascii: ";")) else { return nil }
    let fields = bytes[..<end].split(separator: UInt8(ascii: ","), omittingEmptySubsequences: false)
    guard fields.count >= 3, let sequence = UInt64(String(decoding: fields[1], as: UTF8.self)),
      let time = UInt64(String(decoding: fields[2], as: UTF8.self))
    else { return nil }
    let text = bytes[(end + 1)...].prefix { $0 != UInt8(ascii: "\n") }
    return KernelLogLine(sequence: sequence, time: time &* 1000, text: String(decoding: text, as: UTF8.self))
  }
}

extension Duration {
  /// Whole nanoseconds; saturates at the ends of 64 bits.
  package var nanoseconds: Int64 {
    let (seconds, attoseconds) = components
    let (product, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
    if overflow { return seconds < 0 ? .min : .max }
    let (sum, carry) = product.addingReportingOverflow(attoseconds / 1_000_000_000)
    return carry ? (seconds < 0 ? .min : .max) : sum
  }
}
