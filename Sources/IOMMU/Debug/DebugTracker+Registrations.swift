import AddressSpace

/// Registrations, and whether they still are the memory that was pinned.
extension DebugTracker {
  /// Memory was registered.
  func registered(_ memory: UInt64, byteCount: Int) {
    let registration = DebugRegistration(
      memory: memory, byteCount: byteCount, madeAt: DebugBacktrace(capturing: options.frameCount),
      pages: PageSnapshot(kernel, host: memory, byteCount: byteCount, comparesFrames: true))
    locked { $0.registrations[memory] = registration }
  }

  /// What is registered is pinned anew, or for a while no more, as the protection was switched: only then its pages stay.
  func pinned(_ memory: UInt64, _ isPinned: Bool) {
    guard let byteCount = locked({ $0.registrations[memory]?.byteCount }) else { return }
    let pages = isPinned ? PageSnapshot(kernel, host: memory, byteCount: byteCount, comparesFrames: true) : nil
    locked { $0.registrations[memory]?.pages = pages }
  }

  /// A registration is about to end.
  func unregistering(_ memory: UInt64) {
    if let registration = locked({ $0.registrations.removeValue(forKey: memory) }) { _ = look(at: registration) }
  }

  /// Throws when memory that is about to be mapped is registered, and not what was pinned then: the device would reach the
  /// old pages, and the CPU others.
  func check(_ memory: UnsafeRawBufferPointer, _ operation: String) throws(DMAError) {
    let host = UInt64(UInt(bitPattern: memory.baseAddress))
    for registration in locked({ state in state.registrations.values.filter { $0.overlaps(host, memory.count) } }) {
      let first = max(host, registration.memory)
      let end = min(host + UInt64(memory.count), registration.memory + UInt64(registration.byteCount))
      guard look(at: registration, first, Int(end - first)) else { continue }
      throw DMAError(
        .badMemory, operation, address: host, byteCount: UInt64(memory.count), device: device,
        detail: "The memory was given back to the operating system, or moved, after it was registered",
        remedy: "End the registration before munmap, mremap or MADV_DONTNEED, and register anew")
    }
  }

  /// Looks at everything that is mapped or registered now.
  func lookAtAll() {
    let (mappings, registrations) = locked { ($0.live.sorted { $0.key < $1.key }, $0.registrations) }
    // What ends meanwhile may be changed by its owner: nobody ends anything while a driver asks for this.
    for (_, record) in mappings { look(at: record) }
    for (_, registration) in registrations.sorted(by: { $0.key < $1.key }) { _ = look(at: registration) }
  }

  /// Whether some of a registration is not what was pinned; tells of it.
  private func look(at registration: DebugRegistration, _ host: UInt64? = nil, _ byteCount: Int? = nil) -> Bool {
    let host = host ?? registration.memory, byteCount = byteCount ?? registration.byteCount
    guard let (page, change) = registration.pages?.firstChange(kernel, host: host, byteCount: byteCount) else {
      return false
    }
    let text = "page 0x\(String(page, radix: 16))"
    switch change {
    case .gone: report(about: registration, .memoryGone, "lost \(text) to the operating system")
    case .replaced: report(about: registration, .memoryReplaced, "has another \(text) than the device")
    }
    return true
  }

  func report(about registration: DebugRegistration, _ kind: DebugReport.Kind, _ text: String) {
    let memory = "0x\(String(registration.memory, radix: 16))"
    report(
      DebugReport(
        kind: kind, text: "the registration of \(registration.byteCount) bytes at \(memory) \(text)", device: device,
        address: nil, memory: UInt(registration.memory), byteCount: registration.byteCount,
        mappedAt: registration.madeAt, unmappedAt: DebugBacktrace(),
        foundAt: DebugBacktrace(capturing: options.frameCount)))
  }
}
