/// Lays out a config space: values, what may be written, and the list of capabilities.
struct ConfigBuilder {
  private(set) var bytes: [UInt8]
  private(set) var writable: [UInt8]
  private var lastPointer = 0x34

  init(byteCount: Int) {
    bytes = [UInt8](repeating: 0, count: byteCount)
    writable = bytes
  }

  mutating func set(_ offset: Int, _ value: some FixedWidthInteger) {
    for index in 0..<value.bitWidth / 8 {
      bytes[offset + index] = UInt8(truncatingIfNeeded: value >> (index * 8))
    }
  }

  mutating func allow(_ offset: Int, _ mask: some FixedWidthInteger) {
    for index in 0..<mask.bitWidth / 8 {
      writable[offset + index] = UInt8(truncatingIfNeeded: mask >> (index * 8))
    }
  }

  private mutating func link(_ id: UInt8, at offset: Int) {
    bytes[6] |= 0x10  // status: there is a capability list
    bytes[lastPointer] = UInt8(offset)
    bytes[offset] = id
    lastPointer = offset + 1
  }

  mutating func addCapabilities(_ identity: DeviceIdentity, msi: Int, msix: Int, express: Int) {
    if identity.msiCount > 0 {
      link(0x05, at: msi)
      // 64-bit addresses; Multiple Message Capable is the binary logarithm of the count.
      set(msi + 2, UInt16(0x80 | identity.msiCount.trailingZeroBitCount << 1))
      allow(msi + 2, UInt16(0x71))
      allow(msi + 4, UInt32(0xffff_fffc))
      allow(msi + 8, UInt32.max)
      allow(msi + 12, UInt16.max)
    }
    if identity.msixCount > 0 {
      link(0x11, at: msix)
      let table = identity.msixTable
      set(msix + 2, UInt16(identity.msixCount - 1))
      set(msix + 4, table.offset | UInt32(table.bar))
      // The pending bits follow the table on the next page.
      let tableBytes = UInt32(identity.msixCount * 16)
      set(msix + 8, (table.offset + (tableBytes + 0xfff) & ~0xfff) | UInt32(table.bar))
      allow(msix + 2, UInt16(0xc000))
    }
    if identity.isExpress {
      link(0x10, at: express)
      set(express + 2, UInt16(0x0002))  // version 2, endpoint
      set(express + 4, UInt32(identity.canReset ? 1 << 28 : 0) | 0x8000)
      allow(express + 8, UInt16(0x7fff))
    }
  }
}
