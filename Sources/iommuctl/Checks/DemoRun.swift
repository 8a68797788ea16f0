import IOMMU

/// The steps of `demo`, each on the one before it.
struct DemoRun {
  let device: Device
  let machine: Machine
  let recorder: Recorder

  /// What a driver would put into a ring.
  private struct Descriptor: BitwiseCopyable {
    var address: UInt64
    var byteCount: UInt64
  }

  private static let steps = [
    "allocate-ring", "map", "device-reads", "device-writes", "unmap", "dma-after-unmap",
  ]
  private static let frameByteCount = 1514
  /// Where the ring's first descriptor comes to lie in the landing buffer.
  private static let echo = 2048

  /// Goes through the steps; after one that fails the others are skipped.
  func perform(_ report: inout RunReport) {
    var done = 0
    do {
      try play(&report) { text in
        recorder.add(Self.steps[done], .pass, text)
        done += 1
      }
    } catch {
      let reason: String
      if case CaseStop.failed(let text) = error { reason = text } else { reason = "\(error)" }
      recorder.add(Self.steps[done], .fail, reason)
      for step in Self.steps[(done + 1)...] { recorder.add(step, .skip, "\(Self.steps[done]) failed") }
    }
  }

  private func play(_ report: inout RunReport, _ passed: (String) -> Void) throws {
    let dma = device.dma, edu = try EduDriver(device, machine.host)
    try dma.setMask(EduDriver.mask)

    let ring = try dma.allocate(Descriptor.self, count: 256)
    passed("\(ring.count) descriptors at \(ring.address), which both sides see")

    let sent = pattern(Self.frameByteCount, seed: 1)
    var frame = try dma.buffer(byteCount: sent.count)
    frame.fill(sent)
    let inFlight = try dma.map(frame, .toDevice)
    let address = inFlight.address
    ring[0] = Descriptor(address: address.rawValue, byteCount: UInt64(inFlight.byteCount))
    passed("\(sent.count) bytes at \(address): the device's now")

    try edu.read(from: address, byteCount: sent.count)
    try edu.read(from: ring.address(of: 0), byteCount: ring.stride, to: Self.echo)
    passed("\(sent.count) bytes of the buffer, and \(ring.stride) of the ring")

    var landing = try dma.buffer(byteCount: EduDriver.byteCount)
    landing.fill([UInt8](repeating: 0xee, count: EduDriver.byteCount))
    let inbound = try dma.map(landing, .fromDevice)
    let target = inbound.address
    try edu.write(to: target, byteCount: sent.count)
    try edu.write(to: target + Self.echo, byteCount: ring.stride, from: Self.echo)
    passed("both written to another buffer at \(target)")

    frame = try inFlight.unmap()
    landing = try inbound.unmap()
    try compare(landing, sent, ring[0])
    if let offset = frame.difference(from: sent) {
      throw CaseStop.failed("Byte \(offset) of the buffer that the device read has changed")
    }
    passed("the buffers are the process's again, byte for byte as they must be")

    // To where the device has just written: so that an entry that was left behind would be used.
    var log = FaultWatch(machine.host, dma)
    let kept = [UInt8](repeating: 0x5a, count: landing.byteCount)
    landing.fill(kept)
    try edu.write(to: target, byteCount: 16)
    if let offset = landing.difference(from: kept) {
      throw CaseStop.failed("The device changed byte \(offset) of memory that was unmapped")
    }
    let faults = log.take()
    report.add(faults, of: IOVARange(start: target, byteCount: dma.granule.byteCount)!, isLive: false)
    passed("the memory is unchanged; \(try log.account(of: faults))")
  }

  /// The buffer holds what was sent, and has not changed where the device had nothing to write.
  private func compare(
    _ landing: borrowing DMABuffer, _ sent: [UInt8], _ descriptor: Descriptor
  ) throws(CaseStop) {
    var expected = [UInt8](repeating: 0xee, count: EduDriver.byteCount)
    expected.replaceSubrange(0..<sent.count, with: sent)
    let words = [descriptor.address, descriptor.byteCount]
    let echo = words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
    expected.replaceSubrange(Self.echo..<Self.echo + echo.count, with: echo)
    if let offset = landing.difference(from: expected) {
      throw .failed("Byte \(offset) differs from what was sent")
    }
    recorder.bytesVerified += sent.count + echo.count
  }
}
