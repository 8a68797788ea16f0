package import IOMMU

extension SimulatedKernel {
  package func readFile(_ path: String) throws(Errno) -> [UInt8] {
    try locked { (state) throws(Errno) in try state.readFile(path) }
  }

  package func writeFile(_ path: String, _ text: String) throws(Errno) {
    try locked { (state) throws(Errno) in try state.writeFile(path, text) }
  }

  package func listDirectory(_ path: String) throws(Errno) -> [String] {
    try locked { (state) throws(Errno) in
      let (resolved, node) = try state.tree.resolve(path)
      guard case .directory = node else { throw .notDirectory }
      return state.tree.names(in: resolved)
    }
  }

  package func readLink(_ path: String) throws(Errno) -> String {
    try locked { (state) throws(Errno) in
      guard case .link(let target) = try state.tree.resolve(path, followLast: false).node else {
        throw .invalidArgument
      }
      return target
    }
  }

  package func status(_ path: String) throws(Errno) -> FileStatus {
    try locked { (state) throws(Errno) in try state.status(path) }
  }

  package func checkAccess(_ path: String, write: Bool) throws(Errno) {
    try locked { (state) throws(Errno) in try state.checkAccess(path, write: write) }
  }

  package func open(_ path: String) throws(Errno) -> Int32 {
    try locked { (state) throws(Errno) in try state.open(path) }
  }

  package func close(_ descriptor: Int32) {
    guard DescriptorTable.isSimulated(descriptor) else {
      // EBADF of a descriptor that was closed before: by now it may be one of another machine in this process.
      let isOurs = locked { state in
        let isFile = state.memory.files.removeValue(forKey: descriptor) != nil
        let isEvent = state.memory.events.remove(descriptor) != nil
        return state.closeEventQueue(descriptor) || isFile || isEvent
      }
      if !isOurs { return }
      return HostSystem.close(descriptor)
    }
    systemCall { $0.close(descriptor) }?.reset()
  }

  package func pread(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
  ) throws(Errno) -> Int {
    let byteCount = buffer.count
    guard byteCount > 0 else { return 0 }
    runDueTimers()
    var bytes: [UInt8]
    switch try locked({ (state) throws(Errno) in
      try state.readRegion(descriptor, byteCount: byteCount, at: offset)
    }) {
    case .done(let done): bytes = done
    case .reset: bytes = []
    case .config(let slot, let start, let count):
      let hasPending = slot.hasPendingTransactions
      bytes = try locked { (state) throws(Errno) in
        try state.readConfig(descriptor, start..<start + count, hasPending: hasPending)
      }
    case .model(let slot, let bar, let start, let count):
      bytes = slot.readBytes(bar: bar, offset: start, byteCount: count)
    }
    unsafe buffer.copyBytes(from: bytes)
    return bytes.count
  }

  package func pwrite(
    _ descriptor: Int32, _ buffer: UnsafeRawBufferPointer, at offset: UInt64
  ) throws(Errno) -> Int {
    let bytes = unsafe Array(buffer)
    guard !bytes.isEmpty else { return 0 }
    runDueTimers()
    switch try locked({ (state) throws(Errno) in try state.writeRegion(descriptor, bytes, at: offset) }) {
    case .done(let done): return done.count
    case .config: return bytes.count
    case .reset(let slot):
      slot.reset()
      return bytes.count
    case .model(let slot, let bar, let start, let count):
      slot.writeBytes(bytes.prefix(count), bar: bar, offset: start)
      return count
    }
  }
}
