/// Reads and writes of one width through the device descriptor, as VFIO defines them for every region.
extension DeviceHandle {
  /// Reads exactly one word, little-endian. The corresponding call is `pread` on the region's offset.
  func load<Word: FixedWidthInteger>(_ region: VFIORegionInfo, at offset: Int) throws(DMAError) -> Word {
    let kernel = kernel
    let position = region.offset + UInt64(offset)
    var word = Word.zero
    let done = try use("pread") { descriptor throws(Errno) in
      var buffer = Word.zero
      let outcome: Result<Int, Errno> = unsafe withUnsafeMutableBytes(of: &buffer) { bytes in
        do throws(Errno) {
          return .success(try unsafe kernel.pread(descriptor, bytes, at: position))
        } catch {
          return .failure(error)
        }
      }
      word = Word(littleEndian: buffer)
      return try outcome.get()
    }
    if done != MemoryLayout<Word>.size {
      throw partial("pread", region, offset, done, MemoryLayout<Word>.size)
    }
    return word
  }

  /// Writes exactly one word, little-endian. The corresponding call is `pwrite` on the region's offset.
  func store<Word: FixedWidthInteger>(
    _ value: Word, _ region: VFIORegionInfo, at offset: Int
  ) throws(DMAError) {
    let kernel = kernel
    let position = region.offset + UInt64(offset)
    let done = try use("pwrite") { descriptor throws(Errno) in
      let outcome: Result<Int, Errno> = unsafe withUnsafeBytes(of: value.littleEndian) { bytes in
        do throws(Errno) {
          return .success(try unsafe kernel.pwrite(descriptor, bytes, at: position))
        } catch {
          return .failure(error)
        }
      }
      return try outcome.get()
    }
    if done != MemoryLayout<Word>.size {
      throw partial("pwrite", region, offset, done, MemoryLayout<Word>.size)
    }
  }

  private func partial(
    _ operation: String, _ region: VFIORegionInfo, _ offset: Int, _ done: Int, _ width: Int
  ) -> DMAError {
    DMAError(
      .mismatch, operation, address: UInt64(offset), byteCount: UInt64(width), device: name,
      detail: "The kernel did \(done) of \(width) bytes in \(region.name)")
  }
}
