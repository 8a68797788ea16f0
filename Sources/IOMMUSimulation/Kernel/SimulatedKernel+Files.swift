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
      locked { state in
        state.memory.files[descriptor] = nil
        state.memory.events.remove(descriptor)
      }
      return HostSystem.close(descriptor)
    }
    locked { $0.close(descriptor) }?.reset()
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
    case .model(let slot, let bar, let start, let count):
      bytes = []
      bytes.reserveCapacity(count)
      for piece in AccessPieces(offset: start, byteCount: count) {
        let value = slot.read(bar: bar, offset: piece.offset, width: piece.width)
        for shift in 0..<piece.width { bytes.append(UInt8(truncatingIfNeeded: value >> (UInt64(shift) * 8))) }
      }
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
    case .reset(let slot):
      slot.reset()
      return bytes.count
    case .model(let slot, let bar, let start, let count):
      for piece in AccessPieces(offset: start, byteCount: count) {
        let first = Int(piece.offset - start)
        let value = bytes[first..<first + piece.width].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        slot.write(value, bar: bar, offset: piece.offset, width: piece.width)
      }
      return count
    }
  }
}

/// An access cut into naturally aligned pieces of 8, 4, 2 and 1 bytes, as VFIO does it.
struct AccessPieces: Sequence, IteratorProtocol {
  var offset: UInt64
  var byteCount: Int

  mutating func next() -> (offset: UInt64, width: Int)? {
    guard byteCount > 0 else { return nil }
    let width = [8, 4, 2, 1].first { $0 <= byteCount && offset % UInt64($0) == 0 }!
    defer {
      offset += UInt64(width)
      byteCount -= width
    }
    return (offset, width)
  }
}
