import CIOMMU
import Testing

/// On ordinary memory a register access is a load or a store of its width: neighbours stay as they were.
@Suite("Register accesses")
struct MMIOTests {
  static let pattern: [UInt8] = (0..<24).map { UInt8($0) | 0x80 }

  @Test func loads() {
    unsafe Self.pattern.withUnsafeBytes { memory in
      let base = memory.baseAddress!
      let at8 = unsafe base + 8
      #expect(unsafe ci_mmio_load8(at8) == 0x88)
      #expect(unsafe ci_mmio_load8_relaxed(at8) == 0x88)
      #expect(unsafe ci_mmio_load16(at8) == UInt16(littleEndian: 0x8988))
      #expect(unsafe ci_mmio_load16_relaxed(at8) == UInt16(littleEndian: 0x8988))
      #expect(unsafe ci_mmio_load32(at8) == UInt32(littleEndian: 0x8b8a_8988))
      #expect(unsafe ci_mmio_load32_relaxed(at8) == UInt32(littleEndian: 0x8b8a_8988))
      #expect(unsafe ci_mmio_load64(at8) == UInt64(littleEndian: 0x8f8e_8d8c_8b8a_8988))
      #expect(unsafe ci_mmio_load64_relaxed(at8) == UInt64(littleEndian: 0x8f8e_8d8c_8b8a_8988))
    }
  }

  @Test func stores() {
    unsafe expect(width: 1) { unsafe ci_mmio_store8($0, 0) }
    unsafe expect(width: 1) { unsafe ci_mmio_store8_relaxed($0, 0) }
    unsafe expect(width: 2) { unsafe ci_mmio_store16($0, 0) }
    unsafe expect(width: 2) { unsafe ci_mmio_store16_relaxed($0, 0) }
    unsafe expect(width: 4) { unsafe ci_mmio_store32($0, 0) }
    unsafe expect(width: 4) { unsafe ci_mmio_store32_relaxed($0, 0) }
    unsafe expect(width: 8) { unsafe ci_mmio_store64($0, 0) }
    unsafe expect(width: 8) { unsafe ci_mmio_store64_relaxed($0, 0) }
  }

  /// Stores 0 at byte 8 and expects exactly `width` bytes to change.
  private func expect(width: Int, _ store: (UnsafeMutableRawPointer) -> Void) {
    var bytes = Self.pattern
    unsafe bytes.withUnsafeMutableBytes { unsafe store($0.baseAddress! + 8) }
    var wanted = Self.pattern
    for i in 8..<(8 + width) { wanted[i] = 0 }
    #expect(bytes == wanted)
  }

  @Test("A store is not merged with the next, nor left out because nobody reads it")
  func repeated() {
    // Polling a word that another thread changes ends only if each load is made.
    let word = UnsafeMutablePointer<UInt32>.allocate(capacity: 1)
    unsafe word.initialize(to: 0)
    let address = UInt(bitPattern: word)
    let thread = Worker {
      let word = unsafe UnsafeMutableRawPointer(bitPattern: address)!
      _ = ci_sleep_ns(2_000_000)
      unsafe ci_mmio_store32(word, 1)
    }
    while unsafe ci_mmio_load32(word) == 0 { ci_cpu_pause() }
    thread.join()
    unsafe word.deallocate()
  }

  @Test func barriersReturn() {
    ci_compiler_barrier()
    ci_dma_wmb()
    ci_dma_rmb()
    ci_dma_mb()
    ci_wmb()
    ci_rmb()
    ci_mb()
  }
}
