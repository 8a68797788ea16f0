public import IOMMU

extension NVMeController {
  /// Reads blocks into memory that is mapped at `address`, which is a multiple of 4.
  ///
  /// - Throws: ``NVMeError/status(opcode:type:code:)`` when the controller ends the command with an error, as it does
  ///   when the IOMMU refuses its access to the memory.
  public func read(block: UInt64, count: Int, into address: IOVA) throws(NVMeError) {
    try transfer(Command.Opcode.read, block, count, address)
  }

  /// Writes blocks from memory that is mapped at `address`, which is a multiple of 4.
  public func write(block: UInt64, count: Int, from address: IOVA) throws(NVMeError) {
    try transfer(Command.Opcode.write, block, count, address)
  }

  /// Reads the first four bytes of the health log into memory that is mapped at `address`, a multiple of 4: the shortest transfer
  /// that there is.
  public func readHealth(into address: IOVA) throws(NVMeError) {
    var command = Command(.getLogPage, namespace: .max)
    command.page1 = address.rawValue
    // Log 2, and the number of words less one above it.
    command.words.0 = 2
    _ = try admin.perform(command, timeout: timeout)
  }

  /// Makes what was written durable.
  public func flush() throws(NVMeError) {
    let command = Command(
      ioOpcode: Command.Opcode.flush, namespace: namespace, block: 0, blockCount: 1)
    _ = try io.perform(command, timeout: timeout)
  }

  private func transfer(_ opcode: UInt8, _ block: UInt64, _ count: Int, _ address: IOVA) throws(NVMeError) {
    let byteCount = count * blockByteCount
    guard count > 0, byteCount <= transferLimit, address.rawValue % 4 == 0 else {
      throw .invalidTransfer(
        "\(count) blocks at \(address): at most \(transferLimit) bytes, at a multiple of 4")
    }
    var command = Command(ioOpcode: opcode, namespace: namespace, block: block, blockCount: count)
    describe(address.rawValue, byteCount, in: &command)
    _ = try io.perform(command, timeout: timeout)
  }

  /// The pages of a transfer: the first in PRP1, which may begin inside a page; a second in PRP2; more in a list that
  /// PRP2 names. Addresses are contiguous for the device, whatever the memory is.
  private func describe(_ address: UInt64, _ byteCount: Int, in command: inout Command) {
    let page = UInt64(Self.pageByteCount)
    let first = address & ~(page - 1)
    let pageCount = Int((address + UInt64(byteCount) + page - 1 - first) / page)
    command.page1 = address
    guard pageCount > 1 else { return }
    guard pageCount > 2 else {
      command.page2 = first + page
      return
    }
    for index in 1..<pageCount { pageList[index - 1] = first + UInt64(index) * page }
    command.page2 = pageList.address.rawValue
  }
}
