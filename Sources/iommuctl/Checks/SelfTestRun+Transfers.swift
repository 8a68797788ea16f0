import IOMMU

/// What only a device can show that moves bytes; edu does.
extension SelfTestRun {
  private static let names = [
    "interrupt", "dma-to-device", "dma-from-device", "dma-after-unmap", "read-only",
  ]

  func testTransfers(_ report: inout RunReport) {
    guard isEdu else {
      for name in Self.names { recorder.add(name, .skip, "needs QEMU's edu device, 1234:11e8") }
      return
    }
    recorder.run("interrupt") { try interrupt() }
    recorder.run("dma-to-device") { try echo(byteCount: 1000, offset: 24) }
    recorder.run("dma-from-device") { try echo(byteCount: EduDriver.byteCount, offset: 0) }
    recorder.run("dma-after-unmap") { try afterUnmap(&report) }
    recorder.run("read-only") { try readOnly(&report) }
  }

  private func interrupt() throws -> String {
    let edu = try EduDriver(device, machine.host), event = try device.interrupt(0)
    edu.raiseInterrupt()
    let count = try event.wait(timeout: .seconds(2))
    edu.acknowledgeInterrupt()
    try require(count >= 1, "It was counted \(count) times")
    return "\(event.kind.rawValue) 0 arrived"
  }

  /// The device reads from one buffer, at an offset in its page, and writes to another.
  private func echo(byteCount: Int, offset: Int) throws -> String {
    let edu = try EduDriver(device, machine.host)
    let sent = pattern(byteCount, seed: byteCount)
    var source = try dma.buffer(byteCount: offset + byteCount)
    source.fill([UInt8](repeating: 0x11, count: offset) + sent)
    let outbound = try dma.map(source, .toDevice)
    try edu.read(from: outbound.address + offset, byteCount: byteCount)
    var target = try dma.buffer(byteCount: 2 * page)
    target.fill([UInt8](repeating: 0xee, count: 2 * page))
    let inbound = try dma.map(target, .fromDevice)
    // Over the end of the first page.
    let start = page - byteCount / 2
    try edu.write(to: inbound.address + start, byteCount: byteCount)
    _ = try outbound.unmap()
    target = try inbound.unmap()
    let expected =
      [UInt8](repeating: 0xee, count: start) + sent
      + [UInt8](repeating: 0xee, count: 2 * page - start - byteCount)
    if let difference = target.difference(from: expected) {
      throw CaseStop.failed("Byte \(difference) differs from what was sent")
    }
    recorder.bytesVerified += byteCount
    return "\(byteCount) bytes out at offset \(offset), back over a page's end, byte for byte the same"
  }

  /// The device writes to, and reads from, an address where something was mapped.
  private func afterUnmap(_ report: inout RunReport) throws -> String {
    let edu = try EduDriver(device, machine.host)
    var log = FaultWatch(machine.host, dma)
    let before = pattern(page, seed: 0x55)
    var buffer = try dma.buffer(byteCount: page)
    buffer.fill(before)
    let mapping = try dma.map(buffer, .bidirectional)
    let address = mapping.address
    // Through the address once, so that a stale entry would be there to be used.
    try edu.write(to: address, byteCount: 16)
    buffer = try mapping.unmap()
    try require(
      buffer.difference(from: Array(before[..<16])) != nil,
      "What the device wrote went elsewhere: an earlier mapping's entry is in use")
    let secret = pattern(page, seed: 0x77)
    buffer.fill(secret)
    try edu.write(to: address, byteCount: 16)
    if let offset = buffer.difference(from: secret) {
      throw CaseStop.failed("The device changed byte \(offset) after unmap")
    }
    var faults = log.take()
    try edu.read(from: address, byteCount: 16)
    faults += log.take()
    var seen = try dma.buffer(byteCount: page)
    let inbound = try dma.map(seen, .fromDevice)
    // The new mapping may have the old address: what the device has read is what counts.
    try edu.write(to: inbound.address, byteCount: 16)
    seen = try inbound.unmap()
    try require(seen.difference(from: Array(secret[..<16])) != nil, "The device read memory after unmap")
    report.add(faults, of: IOVARange(start: address, byteCount: UInt64(page))!, isLive: false)
    return "memory unchanged and unread; \(try log.account(of: faults))"
  }

  /// The device writes to memory that it may only read.
  private func readOnly(_ report: inout RunReport) throws -> String {
    let edu = try EduDriver(device, machine.host)
    var log = FaultWatch(machine.host, dma)
    var buffer = try dma.buffer(byteCount: page)
    let kept = pattern(page, seed: 0x33)
    buffer.fill(kept)
    let mapping = try dma.map(buffer, .toDevice)
    let address = mapping.address
    try edu.write(to: address, byteCount: 16)
    let faults = log.take()
    report.add(faults, of: IOVARange(start: address, byteCount: UInt64(page))!, isLive: true)
    buffer = try mapping.unmap()
    if let offset = buffer.difference(from: kept) {
      throw CaseStop.failed("The device changed byte \(offset) of memory that it may only read")
    }
    return "memory unchanged; \(try log.account(of: faults))"
  }
}
