/// QEMU's `edu` device: an educational PCI device that computes factorials, moves up to 4 KiB by DMA and interrupts.
///
/// BAR 0 has 1 MiB: `0x00` identification (0x010000ed) · `0x04` inverts what is written · `0x08` factorial ·
/// `0x20` status (bit 0 computing, bit 7 interrupt when done) · `0x24` interrupt status · `0x60` raise, `0x64`
/// acknowledge · `0x80` DMA source, `0x88` destination, `0x90` count, `0x98` command (bit 0 start and busy, bit 1
/// from device to memory, bit 2 interrupt when done). Its buffer of 4 KiB is at device address 0x40000.
/// It has MSI and INTx, no MSI-X, no reset, and drives 28 address bits unless told otherwise.
public struct EduModel: DeviceModel {
  /// The buffer inside the device.
  public internal(set) var buffer = [UInt8](repeating: 0, count: 4096)
  /// Transfers begun since power on.
  public internal(set) var transferCount = 0
  /// Transfers that the bus did not carry out.
  public internal(set) var failedTransferCount = 0

  /// How many address bits the device drives.
  let addressBits: Int
  /// How long a transfer takes on the machine's clock; QEMU's takes 100 ms.
  let delay: Duration

  private var inverted: UInt32 = 0
  private var factorial: UInt32 = 1
  private var status: UInt32 = 0
  private var interruptStatus: UInt32 = 0
  private var source: UInt64 = 0, destination: UInt64 = 0, count: UInt64 = 0, command: UInt64 = 0

  /// Where the buffer is in the device's own address space.
  static let bufferBase: UInt64 = 0x40000
  private static let dmaInterrupt: UInt32 = 0x100, factorialInterrupt: UInt32 = 1

  /// An edu device. `addressBits` is QEMU's `dma_mask` as a number of bits.
  public init(addressBits: Int = 28, delay: Duration = .zero) {
    (self.addressBits, self.delay) = (addressBits, delay)
  }

  /// Vendor 0x1234, device 0x11e8, one BAR of 1 MiB, one MSI message.
  public var identity: DeviceIdentity {
    var identity = DeviceIdentity(
      vendor: 0x1234, device: 0x11e8, classCode: 0x00ff00, revision: 0x10, bars: [.memory(1 << 20)],
      msiCount: 1, addressBits: addressBits)
    (identity.subsystemVendor, identity.subsystemDevice) = (0x1af4, 0x1100)
    return identity
  }

  /// Whether a transfer was started and is not done: only with a delay.
  public var hasPendingTransactions: Bool { command & 1 != 0 }

  /// Reads a register.
  public func read(bar: Int, offset: UInt64, width: Int, bus: DeviceBus) -> UInt64 {
    // QEMU: below 0x80 only 32-bit accesses, from there on 32 and 64.
    guard bar == 0, width == 4 || width == 8 && offset >= 0x80 else { return .max }
    switch offset {
    case 0x00: return 0x0100_00ed
    case 0x04: return UInt64(inverted)
    case 0x08: return UInt64(factorial)
    case 0x20: return UInt64(status)
    case 0x24: return UInt64(interruptStatus)
    case 0x80: return source
    case 0x88: return destination
    case 0x90: return count
    case 0x98: return command
    default: return .max
    }
  }

  /// Writes a register; a command with its start bit begins a transfer.
  public mutating func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int, bus: DeviceBus) {
    guard bar == 0, width == 4 || width == 8 && offset >= 0x80 else { return }
    let word = UInt32(truncatingIfNeeded: value)
    switch offset {
    case 0x04: inverted = ~word
    case 0x08: compute(word, bus)
    case 0x20: status = status & ~0x80 | word & 0x80
    case 0x60: raise(word, bus)
    case 0x64: acknowledge(word, bus)
    case 0x80 where !hasPendingTransactions: source = value
    case 0x88 where !hasPendingTransactions: destination = value
    case 0x90 where !hasPendingTransactions: count = value
    case 0x98 where !hasPendingTransactions && value & 1 != 0: start(value, bus)
    default: break
    }
  }

  /// Ends a transfer that took its time.
  public mutating func wake(bus: DeviceBus) {
    if hasPendingTransactions { transfer(bus) }
  }
}

// MARK: - What it does

extension EduModel {
  private mutating func compute(_ number: UInt32, _ bus: DeviceBus) {
    factorial = number == 0 ? 1 : (1...number).reduce(1) { $0 &* $1 }
    if status & 0x80 != 0 { raise(Self.factorialInterrupt, bus) }
  }

  private mutating func start(_ value: UInt64, _ bus: DeviceBus) {
    command = value
    transferCount += 1
    if delay == .zero { transfer(bus) } else { bus.wake(after: delay) }
  }

  private mutating func transfer(_ bus: DeviceBus) {
    let fromDevice = command & 2 != 0
    let inside = (fromDevice ? source : destination) &- Self.bufferBase
    // QEMU stops the whole machine when the range leaves the buffer; here nothing moves.
    if inside < 4096, count <= 4096 - inside {
      let range = Int(inside)..<Int(inside + count)
      do throws(DeviceBus.Failure) {
        if fromDevice {
          try bus.write(Array(buffer[range]), to: destination)
        } else {
          buffer.replaceSubrange(range, with: try bus.read(source, byteCount: range.count))
        }
      } catch {
        failedTransferCount += 1
      }
    } else {
      failedTransferCount += 1
    }
    let interrupts = command & 4 != 0
    command &= ~1
    if interrupts { raise(Self.dmaInterrupt, bus) }
  }

  private mutating func raise(_ bits: UInt32, _ bus: DeviceBus) {
    interruptStatus |= bits
    guard interruptStatus != 0 else { return }
    if bus.usesMessages { bus.interrupt() } else { bus.setPin(true) }
  }

  private mutating func acknowledge(_ bits: UInt32, _ bus: DeviceBus) {
    interruptStatus &= ~bits
    if interruptStatus == 0 && !bus.usesMessages { bus.setPin(false) }
  }
}
